"""Directories that do not outlive their program: what a killed one leaves, the next one removes.

A lock (flock) on the directory tells the living from the dead: the kernel drops it
with the program.  Whoever removes a leftover holds its lock meanwhile, and whoever makes
a directory looks, once it has the lock, whether the name still leads there.  So the
moment between making and locking is no gap.  Where the file system locks no directories
(some network file systems) nothing is swept.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs

__all__ = ["HeldDir", "hold_new_dir", "sweep"]

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@attrs.frozen
class HeldDir:
    """A directory of ours (0700), locked while we live."""

    path: Path
    _lock: int
    _owner: int = attrs.field(factory=os.getpid)

    def remove(self) -> None:
        """Remove it with all that is in it; blocking, raises nothing of the file system's."""
        if os.getpid() != self._owner:  # a fork of ours leaves the block too
            return
        try:
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            os.close(self._lock)

    def moved(self, path: Path) -> HeldDir:
        """The same under another name, which it has been given."""
        return HeldDir(path, self._lock, self._owner)

    def release(self) -> None:
        """Hold it no longer: it stays, whatever becomes of us."""
        os.close(self._lock)


def hold_new_dir(parent: Path, new_name: Callable[[], str]) -> HeldDir:
    """Make a directory in *parent* under a name that is free; blocking, raises OSError."""
    while True:
        path = parent / new_name()
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        try:
            lock = os.open(path, _FLAGS)
        except FileNotFoundError:
            continue  # taken for a leftover in this moment
        except OSError:
            path.rmdir()
            raise
        if _is_ours(path, lock):
            return HeldDir(path, lock)
        os.close(lock)


def _is_ours(path: Path, lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks here, so nobody sweeps either
    return _leads_to(path, lock)


def _leads_to(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def sweep(parent: Path, names: re.Pattern[str]) -> None:
    """Remove the directories in *parent* that are called so, are ours, and that nobody holds.

    Blocking, raises OSError when *parent* cannot be read.
    """
    with os.scandir(parent) as entries:
        found = [entry.name for entry in entries if names.fullmatch(entry.name)]
    for name in found:
        with suppress(OSError):  # another program's, or swept by another in this moment
            _remove_leftover(parent / name)


def _remove_leftover(path: Path) -> None:
    lock = os.open(path, _FLAGS)
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _leads_to(path, lock):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
