"""What is in a CD drive: put in, taken out or changed while the guest runs.

A drive takes and gives only with its tray open.  A guest that has mounted a CD locks the tray;
then QEMU asks it to let go, which some do.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.check_files import check_disk
from qmpkit.host.findings import Problem, raise_problems
from qmpkit.machine.drives import drives_of, limit_drive
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.disks import disk_of
from qmpkit.operations.block.graph import Graph, graph_of, nodes_of
from qmpkit.operations.block.layers import making, remove_nodes, with_disks
from qmpkit.operations.errors import TrayLocked
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.undertaking import undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.block import Disk, DiskFormat, blockdevs_of, disk_node
from qmpkit.spec.check import faults_of
from qmpkit.spec.snapshots import layer_node

__all__ = ["eject", "insert", "settle_drive"]

GUEST_GRACE = 2.0
"""Seconds that a guest has to open a tray that it has locked."""


async def insert(
    machine: Changeable,
    disk_id: str,
    file: str | os.PathLike[str],
    *,
    format: DiskFormat | None = None,
    force: bool = False,
) -> None:
    """See `Disks.insert`."""
    async with machine.changing:
        drive = _drive(machine, disk_id)
        path = Path(file).absolute()  # noqa: ASYNC240  # one getcwd
        medium = attrs.evolve(
            drive,
            file=str(path),
            format=format or drive.format,
            driver="host_device" if await trio.Path(path).is_block_device() else "file",
        )
        await _change(machine, drive, medium, f"insert {path} into {disk_id!r}", force=force)


async def eject(machine: Changeable, disk_id: str, *, force: bool = False) -> None:
    """See `Disks.eject`."""
    async with machine.changing:
        drive = _drive(machine, disk_id)
        if not drive.is_empty:
            empty = attrs.evolve(drive, file="", driver="file")
            await _change(machine, drive, empty, f"eject {disk_id!r}", force=force)


def _drive(machine: Changeable, disk_id: str) -> Disk:
    disk = disk_of(machine, disk_id)
    if not disk.is_cdrom:
        fault = Fault("disk", f"{disk_id!r} is {disk.interface}, which has no tray")
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    return disk


async def _change(
    machine: Changeable, before: Disk, after: Disk, asked: str, *, force: bool
) -> None:
    graph = await graph_of(machine)
    inside = () if machine.is_down else nodes_of(graph.chain(before.id))
    node = None if after.is_empty else layer_node(disk_node(before), graph.names)
    after = attrs.evolve(after, node=node)
    spec = with_disks(machine.spec, [after])
    problems = [Problem(fault) for fault in faults_of(spec)]
    if not problems and not after.is_empty:
        look = trio.to_thread.run_sync
        problems = await look(lambda: list(check_disk(spec, after, f"disks.{after.id}")))
    raise_problems(problems, f"machine {machine.name!r}")
    change = Change(
        what=asked,
        spec=spec,
        begun=machine.spec,
        sure=True,
        nodes=() if node is None else (node, f"{node}-file"),
        leaving=inside,
        drive=after.id,
    )
    async with undertaking(machine, change) as it:
        if not machine.is_down:
            await _swap(machine, graph.device(after.id), before, after, asked, force=force)
        it.done()
        with trio.move_on_after(STEP_GRACE, shield=True):
            await remove_nodes(machine, inside)


async def _swap(
    machine: Changeable, drive: str, before: Disk, after: Disk, asked: str, *, force: bool
) -> None:
    async with making(machine) as made:
        if not after.is_empty:
            await made.nodes(*blockdevs_of(after, f"{after.node}-file"))
        async with _taken_back(lambda: machine.execute("blockdev-close-tray", {"id": drive})):
            await _open(machine, drive, asked, force=force)
        async with _taken_back(lambda: _fill(machine, drive, before)):
            await _fill(machine, drive, after)
        made.keep()


@asynccontextmanager
async def _taken_back(undo: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST, CommandRefused):
            await undo()
        raise


async def _open(machine: Changeable, drive: str, asked: str, *, force: bool) -> None:
    with machine.subscribe("DEVICE_TRAY_MOVED") as moves:
        await machine.execute("blockdev-open-tray", {"id": drive, "force": force})
        # No error tells that a tray is locked: the guest has only been asked.
        with trio.move_on_after(GUEST_GRACE):
            while not (await _told(machine, drive)).get("tray_open"):
                await moves.next()
            return
    raise TrayLocked(machine.name, asked)


async def _told(machine: Changeable, drive: str) -> Mapping[str, Any]:
    blocks = await machine.execute("query-block")
    return next((block for _, block in drives_of(blocks) if block["qdev"] == drive), {})


async def _fill(machine: Changeable, drive: str, disk: Disk) -> None:
    """Have this in the drive and nothing else, whatever it was left with, the tray closed."""
    await machine.execute("blockdev-open-tray", {"id": drive, "force": True})
    await machine.execute("blockdev-remove-medium", {"id": drive})
    if not disk.is_empty:
        words = {"id": drive, "node-name": disk_node(disk)}
        await machine.execute("blockdev-insert-medium", words)
        # An empty drive takes no bounds, so it may never have got them.
        await limit_drive(machine, drive, disk.limits)
    await machine.execute("blockdev-close-tray", {"id": drive})


async def settle_drive(machine: Changeable, change: Change, graph: Graph) -> bool:
    """Of a change of a medium that nobody has ended: whether it is done, else take it back."""
    begun, wanted = (
        next(disk for disk in spec.disks if disk.id == change.drive)
        for spec in (change.begun, change.spec)
    )
    drive, inside = graph.device(change.drive), graph.chain(change.drive)
    if [layer.node for layer in inside[:1]] == ([] if wanted.is_empty else [disk_node(wanted)]):
        await machine.execute("blockdev-close-tray", {"id": drive})
        return True
    await _fill(machine, drive, begun)
    return False
