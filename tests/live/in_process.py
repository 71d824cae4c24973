"""The command in this process: a Python of its own for each is dear."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

import pytest

from qmpkit.cli import main
from qmpkit.cli.talk import talk
from tests.live.commands import COMMAND

__all__ = ["Command", "Ran", "without_waits"]


def without_waits(err: str) -> str:
    """What was said on stderr but for "making it …".

    That is said of what takes more than a second, as on a busy host anything may.
    """
    lines = err.splitlines(keepends=True)
    return "".join(line for line in lines if not line.endswith(": making it …\n"))


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
        return Ran(status, out, without_waits(err))

    def apart(self, *words: str) -> Ran:
        """By a process, for what starts a daemon: it is nobody's child then."""
        argv = [*COMMAND, *self._first, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        return Ran(done.returncode, done.stdout, done.stderr)

    def well(self, *words: str) -> Ran:
        ran = self(*words)
        assert ran.status == 0, ran.err
        return ran
