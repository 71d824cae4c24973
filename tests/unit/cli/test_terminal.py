"""A terminal whose echo is off while a status line is shown."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.unit.cli.test_console import until

_SHOWS = """
import sys, termios
from qmpkit.cli.terminal import without_echo
with without_echo():
    print("echo" if termios.tcgetattr(0)[3] & termios.ECHO else "silent", flush=True)
"""


@pytest.mark.parametrize(("ctty", "shown"), [(["--ctty"], b"silent"), ([], b"echo")])
def test_only_our_own_terminal_is_changed(ctty: list[str], shown: bytes, tmp_path: Path) -> None:
    """One that controls nothing of ours was an error: Inappropriate ioctl for device."""
    person, terminal = pty.openpty()
    argv = ["setsid", *ctty, sys.executable, "-c", _SHOWS]
    with subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        assert shown in until(person, b"\n")
        assert process.wait(20) == 0
    assert termios.tcgetattr(terminal)[3] & termios.ECHO
    os.close(terminal)
    os.close(person)
