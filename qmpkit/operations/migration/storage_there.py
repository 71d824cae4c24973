"""The destination's part of moving disks along: their new images, and who may write to them.

What is asked here is plain data, so that it can be asked from another process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, HostLacks
from qmpkit.images.drafts import Placed
from qmpkit.images.encrypting import encrypting
from qmpkit.images.in_use import Allowed
from qmpkit.images.new import place_empty, place_overlay
from qmpkit.operations._protocols import Monitor
from qmpkit.operations.block.layers import unmake
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.spec.block import threads_of
from qmpkit.spec.sizes import format_size

__all__ = ["Door", "NewImages", "ends_serving", "new_images", "place_faults", "room_fault"]
__all__ += ["serves", "thread_faults"]

_THREADS_SERVE = (9, 0)
_EXPORT = "qk-migrate-"


def place_faults(moves: Iterable[DiskMove]) -> Iterator[Fault]:
    """What is wrong with the places of the new images, and with what is below them.  Blocking."""
    taken: dict[str, str] = {}
    for move in moves:
        file, where = move.disk.file, f"disks.{move.id}"
        if (other := taken.setdefault(file, move.id)) != move.id:
            hint = "name the files: disks={…}"
            yield Fault(where, f"{file} would be that of {other!r} too", hint)
        elif os.path.lexists(file):
            yield Fault(where, f"{file} exists already", "choose another place, or remove it")
        elif not os.path.isdir(Path(file).parent):  # noqa: PTH112 - a name may be too long
            yield Fault(where, f"there is no directory {Path(file).parent}", "create it")
        if move.base is not None and not os.path.exists(move.base[0]):  # noqa: PTH110
            hint = "copy it there first, or have it copied too: collapse=True (--collapse)"
            yield Fault(where, f"its base {move.base[0]} is not there", hint)


def room_fault(moves: Iterable[DiskMove]) -> HostLacks | None:
    """That there is less space than the images take, on one of the file systems.  Blocking."""
    needed: dict[int, int] = {}
    for move in moves:
        folder = Path(move.disk.file).parent
        with suppress(OSError):  # which is told as a fault of the place
            device = folder.stat().st_dev
            needed[device] = needed.get(device, 0) + move.bytes
            free = shutil.disk_usage(folder).free
            if needed[device] > free:
                left, right = format_size(needed[device]), format_size(free)
                what = f"the disks would take {left} in {folder}, where {right} are free"
                return HostLacks(what, "free some space there, or choose another place")
    return None


def thread_faults(moves: Iterable[DiskMove], version: tuple[int, ...]) -> Iterator[Fault]:
    """QEMU before 9.0 aborts when an NBD client leaves that another thread has served.  Pure.

    A virtio-blk disk has its thread from when the guest runs on, a SCSI disk from the beginning.
    """
    for move in moves:
        threaded = move.disk.interface != "virtio-blk" and threads_of(move.disk)
        if threaded and version < _THREADS_SERVE:
            message = "it has an iothread, with which QEMU before 9.0 takes in no disk"
            hint = "update the destination's QEMU, or leave this disk where it is"
            yield Fault(f"disks.{move.id}", message, hint)


class NewImages:
    """The images that were made for one migration; gone again unless it succeeds."""

    def __init__(self) -> None:
        self._made: list[Placed] = []

    @property
    def placed(self) -> Sequence[Placed]:
        """Those that a failure takes away again."""
        return self._made

    def keep(self) -> None:
        """They are the guest's, or may be: nothing is taken away any more."""
        self._made.clear()

    async def discard(self) -> None:
        """Remove them, once nobody has them open; another file in the place of one stays."""
        if not self._made:
            return
        with trio.move_on_after(STEP_GRACE, shield=True):
            await trio.to_thread.run_sync(self._unmake, abandon_on_cancel=True)

    async def make(self, move: DiskMove, allowed: Allowed = None) -> None:
        """An empty image, or an overlay of what is there; encrypted if the disk is.

        *allowed*: the folders in which its bases may be.
        """
        how = await encrypting(move.disk.luks)
        disk = move.disk
        # No checkpoint between the image's appearance and its entry in the list.
        if move.base is None:
            placed = await place_empty(disk.file, move.size, disk.format, **how)
        else:
            words = (disk.file, *move.base, disk.format)
            placed = await place_overlay(*words, size=move.size, allowed=allowed, **how)
        self._made.append(placed)

    def _unmake(self) -> None:
        unmake(self._made)
        self._made.clear()


@asynccontextmanager
async def new_images(
    moves: Iterable[DiskMove], allowed: Allowed = None
) -> AsyncIterator[NewImages]:
    """Make an image for each disk that goes along, never over a file that is there.

    The block's end removes them, unless they are kept by then.
    Raises ImageFailed, ImageInUse, BinaryMissing, SpecInvalid for a secret that is not there.
    """
    images = NewImages()
    try:
        for move in moves:
            await images.make(move, allowed)
        yield images
    finally:
        await images.discard()


@attrs.frozen(kw_only=True)
class Door:
    """Where disks are served: `server` is the address in QEMU's form (`SocketAddress`).

    `tls`: the id of the object by which each end shows who it is; "" for a socket of this host.
    """

    server: Mapping[str, str]
    tls: str = ""


async def serves(destination: Monitor, moves: Iterable[DiskMove], door: Door) -> None:
    """Have the destination let its images be written at *door*, each by its disk's id (NBD).

    Its guest has not come yet.  (`nbd-server-start`, `block-export-add`.)
    """
    kind = door.server["type"]
    data = {key: value for key, value in door.server.items() if key != "type"}
    words: dict[str, Any] = {"addr": {"type": kind, "data": data}}
    if door.tls:
        words["tls-creds"] = door.tls
    await destination.execute("nbd-server-start", words)
    if kind == "unix":
        await trio.to_thread.run_sync(Path(door.server["path"]).chmod, 0o600)
    for move in moves:
        export = {"type": "nbd", "id": f"{_EXPORT}{move.id}", "name": move.id, "writable": True}
        await destination.execute("block-export-add", {**export, "node-name": move.node})


async def ends_serving(destination: Monitor) -> None:
    """Nobody writes to its images from outside any more (`nbd-server-stop`)."""
    await destination.execute("nbd-server-stop")
