"""Block nodes that are made for an operation, and taken away again when it fails."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from qmpkit.images.drafts import Placed
from qmpkit.images.tool import Asked
from qmpkit.operations._protocols import Changeable, Monitor
from qmpkit.operations.block.graph import file_of
from qmpkit.operations.jobs import job
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.block import Disk, blockdevs_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.options import Json

__all__ = [
    "INODE",
    "Made",
    "formatted",
    "layer_blockdevs",
    "making",
    "new_file",
    "remove_files",
    "remove_nodes",
    "unmake",
    "with_disks",
]

INODE = 1
"""Where a stamp (`Placed`) has the number of the file."""

_FILE = 2  # of a stamp, what tells which file it is


def layer_blockdevs(disk: Disk, *, backing: str | None = None) -> tuple[Json, Json]:
    """The two `blockdev-add`s of an image that is to take the place of a disk's."""
    lower, upper = blockdevs_of(disk, f"{disk.node}-file")
    return lower, {**upper, "backing": backing} if disk.format == "qcow2" else upper


def with_disks(spec: MachineSpec, changed: Iterable[Disk]) -> MachineSpec:
    """*spec* with these disks in the places of those that have their ids."""
    by_id = {disk.id: disk for disk in changed}
    return attrs.evolve(spec, disks=[by_id.get(disk.id, disk) for disk in spec.disks])


async def formatted(
    machine: Monitor, node: str, size: int, *, parent: str | None, id: str, asked: str
) -> None:
    """Make an empty qcow2 of the file that is *node* (`blockdev-create`, a job *id*).

    *parent*: the name of the file beside it that it is to need.  JobFailed when there is no
    space; *asked*: what it is for.
    """
    options: dict[str, object] = {"driver": "qcow2", "file": node, "size": size}
    if parent is not None:
        options |= {"backing-file": f"./{parent}", "backing-fmt": "qcow2"}
    async with job(machine, "blockdev-create", {"options": options}, id=id, asked=asked):
        pass


def new_file(asked: Asked, path: Path) -> Placed:
    """An empty file, which is not there yet; blocking, `ImageFailed` in the name of *asked*."""
    try:
        path.open("xb").close()
        return Placed.of(path)
    except OSError as error:
        raise asked.failed_by(error) from error


class Made:
    """What was made for one operation; `keep()` says that it is needed from now on."""

    def __init__(self, machine: Monitor) -> None:
        self._machine = machine
        self._nodes: list[str] = []
        self._files: list[Placed] = []

    @property
    def files(self) -> Sequence[Placed]:
        """The files that were made."""
        return self._files

    def file(self, placed: Placed) -> None:
        """A file that was made; no checkpoint between its appearance and this."""
        self._files.append(placed)

    async def nodes(self, *blockdevs: Json) -> None:
        """Add block nodes (`blockdev-add`)."""
        for blockdev in blockdevs:
            # Before: cancelled, the command's outcome is unknown.
            self._nodes.append(str(blockdev["node-name"]))
            await self._machine.execute("blockdev-add", blockdev)

    def keep(self) -> None:
        """Nothing is taken away any more."""
        self._nodes.clear()
        self._files.clear()

    async def _undo(self) -> None:
        with suppress(*LOST):
            await remove_nodes(self._machine, reversed(self._nodes))
        await trio.to_thread.run_sync(unmake, self._files, abandon_on_cancel=True)


@asynccontextmanager
async def making(machine: Monitor) -> AsyncIterator[Made]:
    """What is made within is taken away again when the block fails or is cancelled."""
    made = Made(machine)
    try:
        yield made
    except BaseException:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await made._undo()
        raise


async def remove_nodes(machine: Monitor, nodes: Iterable[str]) -> None:
    """Remove block nodes (`blockdev-del`); those that are not there, or in use, are left."""
    for node in nodes:
        with suppress(CommandRefused):
            await machine.execute("blockdev-del", {"node-name": node})


async def remove_files(machine: Changeable, files: Iterable[str]) -> None:
    """Remove files that nobody needs any more, but never one that the machine has open."""
    nodes = await machine.execute("query-named-block-nodes", {"flat": True})
    needed = {file_of(node) for node in nodes} | {disk.file for disk in machine.spec.disks}
    await trio.to_thread.run_sync(_remove, [file for file in files if file not in needed])


def _remove(files: Iterable[str]) -> None:
    for file in files:
        with suppress(FileNotFoundError):
            os.unlink(file)  # noqa: PTH108


def unmake(files: Iterable[Placed]) -> None:
    """Remove files that were made for what came to nothing.  Blocking."""
    for placed in files:
        # Another file there by now is somebody else's; QEMU has written to ours.
        with suppress(FileNotFoundError):
            if Placed.of(placed.path).stamp[:_FILE] == placed.stamp[:_FILE]:
                placed.path.unlink()
