"""Files of one run: made in a directory of their own, gone as soon as QEMU has them open.

What a run that was killed while it started has left is removed by the next one.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from qmpkit.errors import HostLacks
from qmpkit.process.held_dirs import HeldDir, hold_new_dir, sweep

__all__ = ["Scratch", "scratch"]

# A handful of system calls; the bound is for a file system that hangs.
_CLEANUP_GRACE = 5.0
# Nothing else of ours is called so: /tmp/qmpkit-<uid> may be the runtime directory.
_NAME = re.compile(r"qmpkit-[0-9a-f]{12}\.tmp")


class Scratch:
    """A directory that only its owner may enter; made when its first path is asked for."""

    def __init__(self) -> None:
        self._held: HeldDir | None = None

    async def path(self, name: str) -> Path:
        """Where the file *name* goes; nothing is there yet.  HostLacks when nothing can be."""
        if self._held is None:
            self._held = await trio.to_thread.run_sync(_make)
        return self._held.path / name

    async def remove(self) -> None:
        """Take the names away; a QEMU that has the files open keeps them to its end."""
        held, self._held = self._held, None
        if held is not None:
            with trio.move_on_after(_CLEANUP_GRACE, shield=True):
                await trio.to_thread.run_sync(held.remove, abandon_on_cancel=True)


@asynccontextmanager
async def scratch() -> AsyncIterator[Scratch]:
    """A `Scratch` of which nothing is left after the block."""
    place = Scratch()
    try:
        yield place
    finally:
        await place.remove()


def _make() -> HeldDir:
    # Not /tmp by itself: that is often memory, and a guest may write gigabytes.
    parent = Path(os.environ.get("TMPDIR") or "/var/tmp").absolute()
    with suppress(OSError):  # it may be written, but not read; or making will say what is wrong
        sweep(parent, _NAME)
    try:
        return hold_new_dir(parent, lambda: f"qmpkit-{secrets.token_hex(6)}.tmp")
    except OSError as error:
        what = f"no directory can be made in {str(parent)!r}: {error.strerror}"
        raise HostLacks(what, "name another place: TMPDIR=…") from error
