"""The private folder of disks that are held at a moment: the socket, and the images."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from qmpkit.errors import ImageInUse
from qmpkit.images.tool import Asked

__all__ = ["FLEECE", "SERVER", "SOCKET", "cleared_folder", "held_folder", "removed_folder"]

SOCKET = "nbd.sock"
"""Where the disks are served."""

SERVER = "own.sock"
"""Where QEMU's server is, which serves nobody but the one at `SOCKET`; a name as long."""

FLEECE = ".fleece.qcow2"
"""What the names of the images end in that take what the guest overwrites."""


def held_folder(asked: Asked) -> int:
    """Make the folder, or take one that a program which died has left; the lock on it.

    Blocking.  ImageInUse, or ImageFailed: what is in it is never removed but for what such a
    program leaves.
    """
    folder = asked.path
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise asked.failed_by(error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _refuse_others(asked, lock)
        _clear(folder)
    except BlockingIOError as error:
        os.close(lock)
        why = "another backup holds disks there"
        raise ImageInUse(str(folder), asked.doing, why, "name another") from error
    except OSError as error:
        os.close(lock)
        raise asked.failed_by(error) from error
    except BaseException:
        os.close(lock)
        raise
    return lock


def _refuse_others(asked: Asked, lock: int) -> None:
    others = [name for name in os.listdir(lock) if not _is_ours(name)]
    if others or os.fstat(lock).st_mode & 0o077:
        raise asked.failed("it is no private folder of such a backup", "name a new one")


def _is_ours(name: str) -> bool:
    return name in (SOCKET, SERVER) or name.endswith(FLEECE)


def _clear(folder: Path) -> None:
    for name in os.listdir(folder):  # noqa: PTH208
        if _is_ours(name):
            (folder / name).unlink(missing_ok=True)


def cleared_folder(folder: Path) -> None:
    """Take away what a program that died has left.  Blocking; nothing when it is not there."""
    with suppress(OSError):
        _clear(folder)
        folder.rmdir()


def removed_folder(lock: int, folder: Path) -> None:
    """Take away what is ours in it, and the folder; the lock is given up.  Blocking."""
    try:
        cleared_folder(folder)
    finally:
        os.close(lock)
