"""`qmpkit console` at a terminal: however it is left, the terminal is as it was."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.cli.daemons import Answers, Held, scripted
from tests.unit.cli.test_tune import stats

ANSWERS: Answers = {
    "GET /machines": {"machines": [{"name": "web1"}]},
    "GET /machines/web1": {"name": "web1", "pid": 5},
    "GET /stats": {"machines": [stats("web1", 1.0, 1.0)]},
    "POST /machines/web1/console": Held("tiny# "),
}


HEEDING = (
    "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); from qmpkit.cli import main;"
    " sys.exit(main(sys.argv[1:]))"
)
"""Also where the tests run under nohup: it is ignored by all that they start."""


@contextmanager
def at_terminal(*words: str) -> Iterator[tuple[int, int, subprocess.Popen[bytes]]]:
    """The person's side and the command's side of a terminal, and the command."""
    person, terminal = pty.openpty()
    argv = [sys.executable, "-c", HEEDING, *words]
    with subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        try:
            yield person, terminal, process
        finally:
            process.kill()
    os.close(terminal)
    os.close(person)


def until(person: int, text: bytes) -> bytes:
    """What is shown, until *text* is."""
    shown = b""
    while text not in shown:
        assert select.select([person], [], [], 20)[0], shown
        shown += os.read(person, 65536)
    return shown


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None])
def test_the_terminal_is_as_it_was(how: signal.Signals | None, root: Path) -> None:
    with (
        scripted(root, ANSWERS),
        at_terminal("console", "web1") as (person, terminal, process),
    ):
        before = termios.tcgetattr(terminal)
        until(person, b"tiny# ")
        assert termios.tcgetattr(terminal) != before
        if how is None:
            os.write(person, b"\x1d")
        else:
            process.send_signal(how)
        assert process.wait(20) == (0 if how is None else 130)
        assert termios.tcgetattr(terminal) == before
        if how is not None:
            shown = until(person, b"interrupted")
            assert b"Traceback" not in shown
            assert shown.splitlines()[-1].endswith(b"error: \x1b[0minterrupted"), (
                "a line of its own"
            )


def test_what_is_no_terminal_is_interrupted_in_one_line(root: Path) -> None:
    with scripted(root, ANSWERS):
        argv = [sys.executable, "-m", "qmpkit.cli", "console", "web1"]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.read(6) == b"tiny# "
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            said = process.stderr.read()
    assert said == b"web1: Ctrl-] leaves the console\nerror: interrupted\n"


def test_top_gives_the_cursor_back(root: Path) -> None:
    with scripted(root, ANSWERS), at_terminal("top") as (person, _, process):
        until(person, b"\x1b[?25l")
        process.terminate()
        until(person, b"\x1b[?25h")
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("pid", "why"),
    [
        (None, "error: machine 'web1' has ended\n"),
        (5, "error: machine 'web1' has ended\n"),
        (
            7,
            "error: machine 'web1' goes on in another process (7), where it has moved or started. "
            "Cure: `qmpkit console web1` again\n",
        ),
    ],
)
def test_why_it_ends_by_itself(pid: int | None, why: str, root: Path) -> None:
    pids = iter([5, 5, pid])  # it is not seen at once
    machine: Answers = {"GET /machines/web1": lambda: {"name": "web1", "pid": next(pids)}}
    machine["GET /events"] = lambda: ": listening\n\n"
    with scripted(root, {**ANSWERS, **machine, "POST /machines/web1/console": "bye"}):
        ran = subprocess.run(
            [sys.executable, "-m", "qmpkit.cli", "console", "web1"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (ran.returncode, ran.stdout) == (1, "bye")
    assert ran.stderr.endswith(f"\n{why}")
