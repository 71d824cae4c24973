"""The command in this process: a Python of its own for each is dear."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

import pytest

from qmpkit.cli import main
from qmpkit.cli.talk import talk
from tests.live.commands import COMMAND

__all__ = ["Command", "Ran"]


class Ran(NamedTuple):
    status: int
    out: str
    err: str


class Command:
    """The command, in the directory where the test is; *first* are its first words."""

    def __init__(self, captured: pytest.CaptureFixture[str], *first: str) -> None:
        self._captured = captured
        self._first = first

    def __call__(self, *words: str) -> Ran:
        talk._console = None  # it has asked once whether it is a terminal's
        self._captured.readouterr()
        status = main([*self._first, *words])
        out, err = self._captured.readouterr()
        # "making it …" is said of what takes more than a second, as on a busy host anything may.
        said = [
            line for line in err.splitlines(keepends=True) if not line.endswith(": making it …\n")
        ]
        return Ran(status, out, "".join(said))

    def apart(self, *words: str) -> Ran:
        """By a process, for what starts a daemon: it is nobody's child then."""
        argv = [*COMMAND, *self._first, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        return Ran(done.returncode, done.stdout, done.stderr)

    def well(self, *words: str) -> Ran:
        ran = self(*words)
        assert ran.status == 0, ran.err
        return ran
