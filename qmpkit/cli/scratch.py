"""Files of one run: made in a directory of their own, gone as soon as QEMU has them open."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from qmpkit.errors import HostLacks

__all__ = ["Scratch", "scratch"]

# A handful of system calls; the bound is for a file system that hangs.
_CLEANUP_GRACE = 5.0


class Scratch:
    """A directory that only its owner may enter; made when its first path is asked for."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    async def path(self, name: str) -> Path:
        """Where the file *name* goes; nothing is there yet.  HostLacks when nothing can be."""
        if self._folder is None:
            self._folder = await trio.to_thread.run_sync(_make)
        return self._folder / name

    async def remove(self) -> None:
        """Take the names away; a QEMU that has the files open keeps them to its end."""
        folder, self._folder = self._folder, None
        if folder is not None:
            with trio.move_on_after(_CLEANUP_GRACE, shield=True):
                await trio.to_thread.run_sync(shutil.rmtree, folder, True, abandon_on_cancel=True)


@asynccontextmanager
async def scratch() -> AsyncIterator[Scratch]:
    """A `Scratch` of which nothing is left after the block."""
    place = Scratch()
    try:
        yield place
    finally:
        await place.remove()


def _make() -> Path:
    # Not /tmp by itself: that is often memory, and a guest may write gigabytes.
    parent = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        return Path(tempfile.mkdtemp(prefix="qmpkit-", dir=parent))
    except OSError as error:
        what = f"no directory can be made in {parent!r}: {error.strerror}"
        raise HostLacks(what, "name another place: TMPDIR=…") from error
