"""The person's terminal between two turns of the guest's console."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from qmpkit.operations._terminal import FdInput, Hangup

__all__ = ["enter_pressed", "has_keyboard", "tidy", "without_echo"]

_LFLAG = 3


def has_keyboard() -> bool:
    """Whether somebody can type."""
    return sys.stdin.isatty()


@contextmanager
def without_echo() -> Iterator[None]:
    """What is typed within the block does not garble the status line."""
    fd = sys.stdin.fileno()
    if not _is_ours(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    silent = [*before]
    silent[_LFLAG] = before[_LFLAG] & ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSANOW, silent)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(fd, termios.TCSANOW, before)


def _is_ours(fd: int) -> bool:
    """Whether *fd* is the terminal that types to us."""
    try:
        # In the background, changing the terminal would get us stopped (SIGTTOU).
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # ENOTTY: it controls another session, or none (`setsid`)
        return False


async def enter_pressed() -> None:
    """Wait for a line at the keyboard; for ever when there is no keyboard any more."""
    with FdInput(sys.stdin.fileno()) as keyboard, suppress(Hangup):
        if await keyboard.read():
            return
    await trio.sleep_forever()


def tidy(shown: bytes) -> None:
    """Our lines begin at the left after what was *shown*, in no colour of the guest's."""
    if sys.stdout.isatty():
        with suppress(OSError):  # the terminal has gone
            os.write(sys.stdout.fileno(), b"\x1b[0m" if shown.endswith(b"\n") else b"\x1b[0m\r\n")
