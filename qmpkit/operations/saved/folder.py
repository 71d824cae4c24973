"""The folder of a saved machine: drafted beside its place, held, and put there whole."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit.errors import ImageInUse
from qmpkit.images.hidden import hidden_beside
from qmpkit.images.tool import Asked
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.process.durable import sync, write_durably
from qmpkit.process.held_dirs import HeldDir
from qmpkit.spec.saved import MANIFEST, SavedMachine, saved_to_json

__all__ = ["FolderDraft", "drafted_folder", "held_folder", "mark_spent"]

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)


@attrs.define
class FolderDraft:
    """A folder that is being filled, hidden beside its place."""

    target: Path
    asked: Asked
    _held: HeldDir

    @property
    def path(self) -> Path:
        """Where it is now."""
        return self._held.path

    async def place(self, saved: SavedMachine) -> None:
        """Give it its manifest and its name, safe on disk.  ImageFailed.

        Not cancelled in the middle, and no checkpoint after.
        """
        try:
            await trio.to_thread.run_sync(self._place, saved)
        except OSError as error:
            raise self.asked.failed_by(error) from error

    def _place(self, saved: SavedMachine) -> None:
        write_durably(self.path / MANIFEST, saved_to_json(saved))
        if os.path.lexists(self.target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.path.rename(self.target)
        self._held = self._held.moved(self.target)
        sync(self.target.parent)


@asynccontextmanager
async def drafted_folder(path: Path, doing: str) -> AsyncIterator[FolderDraft]:
    """A draft of the folder at *path*; a block that fails takes it away, placed or not.

    What a program that was killed has left of one goes when the next is drafted there.
    ImageFailed when none can be made.
    """
    asked = Asked.of(doing, path)
    held = await trio.to_thread.run_sync(hidden_beside, asked, "saved")
    draft = FolderDraft(asked.path, asked, held)
    try:
        yield draft
    except BaseException:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await trio.to_thread.run_sync(draft._held.remove, abandon_on_cancel=True)
        raise
    held.release()


@asynccontextmanager
async def held_folder(folder: Path, *, alone: bool) -> AsyncIterator[None]:
    """Nobody else restores from it meanwhile: *alone*, or onto the disks that are its own.

    ImageInUse when another does; ImageFailed.
    """
    asked = Asked("restore the machine in", folder)
    fd = await trio.to_thread.run_sync(_locked, asked, alone)
    try:
        yield
    finally:
        os.close(fd)


def _locked(asked: Asked, alone: bool) -> int:
    try:
        fd = os.open(asked.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise asked.failed_by(error) from error
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        why = "another restores it in this moment"
        raise ImageInUse(str(asked.path), asked.doing, why, "wait for that one") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # of some network file systems
            os.close(fd)
            raise asked.failed_by(error) from error
    return fd


async def mark_spent(folder: Path, saved: SavedMachine) -> None:
    """Note, safe on disk, that its own disks go on from here.  ImageFailed."""
    text = saved_to_json(attrs.evolve(saved, spent=time.time()))
    try:
        await trio.to_thread.run_sync(write_durably, folder / MANIFEST, text)
    except OSError as error:
        raise Asked("mark as restored", folder).failed_by(error) from error
