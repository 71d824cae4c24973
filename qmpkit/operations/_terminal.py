"""A process's own stdin and stdout under trio, without changing them for anybody else.

O_NONBLOCK belongs to the open file, which a terminal's stdin, stdout and stderr and
those of the parent shell share: setting it makes their writes fail with EAGAIN.
So terminals and pipes are opened once more, and what cannot be is used by a thread.
"""

from __future__ import annotations

import os
import stat
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

__all__ = ["FdInput", "FdOutput", "Hangup", "raw_mode"]

_SIZE = 64 * 1024


class Hangup(Exception):
    """The terminal has gone, or the reader of our output has."""


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Every key goes to the guest within the block, if *fd* is a terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    # TCSANOW throughout: waiting for the output to drain could block on a stalled terminal.
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal has gone: nothing is left to restore
            termios.tcsetattr(fd, termios.TCSANOW, before)


class _Fd:
    """One direction of a descriptor; `waitable` when it does not block and epoll knows it."""

    def __init__(self, fd: int, flags: int) -> None:
        self._own: int | None = None
        self.is_terminal = os.isatty(fd)
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or self.is_terminal:
            self._own = _reopened(fd, flags)
        self.fd = fd if self._own is None else self._own
        self.waitable = self._own is not None or stat.S_ISSOCK(mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._own is not None:
            os.close(self._own)


def _reopened(fd: int, flags: int) -> int | None:
    path = f"/proc/self/fd/{fd}"
    try:
        if Path(path).readlink().name == "ptmx":
            return None  # the master of a pseudo-terminal: opening it makes a new pair
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None  # the terminal of another user (su), or no /proc


class FdInput(_Fd):
    """Reads a terminal, pipe, socket or file."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, os.O_RDONLY)
        # A terminal that could not be opened again is ours to read alone once it is readable.
        self.waitable = self.waitable or self.is_terminal

    async def read(self) -> bytes:
        """Some bytes, b"" at the end; Hangup when the terminal has gone."""
        try:
            if not self.waitable:  # a file or /dev/null, which is never waited for long
                return await trio.to_thread.run_sync(os.read, self.fd, _SIZE)
            return await self._read_when_ready()
        except OSError as error:
            raise Hangup from error

    async def _read_when_ready(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            try:
                return os.read(self.fd, _SIZE)
            except BlockingIOError:
                continue  # somebody else read it first


class FdOutput(_Fd):
    """Writes a terminal, pipe, socket or file."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, os.O_WRONLY)
        # A socket cannot be opened again, so a thread bears its blocking.
        self.waitable = self._own is not None

    async def write_all(self, data: bytes) -> None:
        """Write all of *data*; Hangup when nobody can read it."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[await self._write(rest) :]
            except OSError as error:
                raise Hangup from error

    async def _write(self, data: memoryview) -> int:
        if not self.waitable:
            # Abandoned when cancelled: whoever does not read must not hold us.
            return await trio.to_thread.run_sync(
                os.write, self.fd, bytes(data), abandon_on_cancel=True
            )
        while True:
            await trio.lowlevel.wait_writable(self.fd)
            try:
                return os.write(self.fd, data)
            except BlockingIOError:
                continue
