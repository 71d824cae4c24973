"""Locks between tasks and between processes: the kernel drops them with whoever had them."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

__all__ = ["held", "held_folder", "is_held"]

_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@asynccontextmanager
async def held(path: Path) -> AsyncIterator[None]:
    """Hold the lock that is the file *path*, which is made (0600).  Raises OSError.

    Waits for whoever has it; a cancellation ends that at once.
    """
    async with _held(_Claim(path, lambda: os.open(path, _FILE, 0o600)), None):
        yield


@asynccontextmanager
async def held_folder(
    path: Path, waiting: Callable[[], object] | None = None
) -> AsyncIterator[None]:
    """Hold the directory *path*, which is made (0700); *waiting* is called when another has it.

    Whoever has it may remove it: who comes next makes it anew.  As `held` otherwise.
    """

    def opened() -> int:
        # Not exist_ok: that looks again, when its holder may have removed it, and raises then.
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        return os.open(path, _FOLDER)

    async with _held(_Claim(path, opened), waiting):
        yield


def is_held(path: Path) -> bool:
    """Whether somebody has the lock of the file or directory *path*; blocking, raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@asynccontextmanager
async def _held(claim: _Claim, waiting: Callable[[], object] | None) -> AsyncIterator[None]:
    try:
        if not await trio.to_thread.run_sync(claim.try_now):
            if waiting is not None:
                waiting()
            # One of its own: a thread that waits on must not take the place of others' work.
            limiter = trio.CapacityLimiter(1)
            await trio.to_thread.run_sync(claim.wait, abandon_on_cancel=True, limiter=limiter)
        yield
    finally:
        claim.give_up()


class _Claim:
    """One who wants a lock.  The thread that waits for it may outlive the task that asked."""

    def __init__(self, path: Path, opened: Callable[[], int]) -> None:
        self._path = path
        self._opened = opened
        self._mutex = threading.Lock()
        self._fd = -1
        self._given_up = False

    def try_now(self) -> bool:
        try:
            self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        self._take(fcntl.LOCK_EX)

    def give_up(self) -> None:
        with self._mutex:
            self._given_up = True
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _take(self, how: int) -> None:
        while True:
            try:
                fd = self._opened()
            except FileNotFoundError:
                if not self._path.parent.is_dir():
                    raise
                continue  # removed by whoever had it, in this moment
            if self._locked(fd, how):
                return

    def _locked(self, fd: int, how: int) -> bool:
        """Whether the lock is ours, or nobody wants it any more; else *fd* is closed."""
        ours = False
        try:
            fcntl.flock(fd, how)
            with self._mutex:
                if self._given_up:
                    return True
                # Its holder may have removed it: then the name leads elsewhere by now.
                ours = _leads_to(self._path, fd)
                if ours:
                    self._fd = fd
        finally:
            if not ours:
                os.close(fd)
        return ours


def _leads_to(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False
