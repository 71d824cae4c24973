"""The images a spec says to make: made before the start, unmade when the start fails."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from qmpkit.host.holders import image_locked
from qmpkit.images.drafts import Placed
from qmpkit.images.encrypting import encrypting
from qmpkit.images.new import place_empty, place_overlay
from qmpkit.images.varstore import place_store
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.firmware import Firmware, Uefi
from qmpkit.spec.machine import MachineSpec

__all__ = ["MadeImages", "place_disk", "prepared_disks"]

# A handful of system calls; the bound is for a file system that hangs.
_CLEANUP_GRACE = 5.0


class MadeImages:
    """What was made for one start; `keep()` says that the start is done."""

    def __init__(self) -> None:
        self._made: list[Placed] = []

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images that were made and that a failure would take away again."""
        return tuple(made.path for made in self._made)

    def keep(self) -> None:
        """From now on the images are the guest's: nothing is taken away."""
        self._made.clear()

    async def _make(self, disk: Disk) -> None:
        # No checkpoint between the image's appearance and its entry in the list.
        self._made.append(await place_disk(disk))

    async def _make_store(self, firmware: Firmware) -> None:
        if not isinstance(firmware, Uefi) or not firmware.vars or not firmware.template:
            return
        if not await trio.to_thread.run_sync(os.path.lexists, firmware.vars):
            self._made.append(await place_store(firmware.vars, firmware.template))

    def _unmake(self) -> None:
        while self._made:
            made = self._made.pop()
            try:
                # Whoever wrote to it since, put another file there or runs on it, wants it.
                if Placed.of(made.path) == made and not image_locked(made.path, for_writing=True):
                    made.path.unlink()
            except FileNotFoundError:
                continue


@asynccontextmanager
async def prepared_disks(spec: MachineSpec) -> AsyncIterator[MadeImages]:
    """Make the images that the `make=` of *spec*'s disks ask for, and its store of variables.

    A file that exists is used as it is, never replaced.  When the block fails or is
    cancelled before `keep()`, what was made is removed, unless somebody has written
    to it or another QEMU has it open; a block that ends well keeps it.  Runs
    qemu-img, about 20 ms an image.

    Raises `ImageFailed`, `ImageInUse`, `BinaryMissing`.
    """
    made = MadeImages()
    try:
        for disk in await _missing(spec):
            await made._make(disk)
        await made._make_store(spec.firmware)
        yield made
    except BaseException:
        with trio.move_on_after(_CLEANUP_GRACE, shield=True):
            await trio.to_thread.run_sync(made._unmake, abandon_on_cancel=True)
        raise


async def place_disk(disk: Disk) -> Placed:
    """Make the image that a disk's `make` asks for.

    There is no checkpoint between the image's appearance and the return.
    """
    assert disk.make is not None, "there is nothing to make"
    how = await encrypting(disk.luks)
    if isinstance(disk.make, Overlay):
        base = disk.make
        return await place_overlay(disk.file, base.file, base.format, disk.format, **how)
    return await place_empty(disk.file, disk.make, disk.format, **how)


async def _missing(spec: MachineSpec) -> list[Disk]:
    wanted = [disk for disk in spec.disks if disk.make is not None]
    if not wanted:  # the usual start pays nothing
        return []
    return await trio.to_thread.run_sync(
        lambda: [disk for disk in wanted if not os.path.lexists(disk.file)]
    )
