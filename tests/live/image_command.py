"""`qmpkit image …` in this process: a Python of its own for each command is dear."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from qmpkit.cli import main

__all__ = ["ImageCommand", "Ran"]


class Ran(NamedTuple):
    status: int
    out: str
    err: str


class ImageCommand:
    """The command, in the directory where the test is."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> Ran:
        status = main(["image", *words])
        return Ran(status, *self._capsys.readouterr())

    def well(self, *words: str) -> Ran:
        ran = self(*words)
        assert ran.status == 0, ran.err
        return ran
