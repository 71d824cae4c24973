"""What can be done to a disk while its guest uses it: move, flatten, grow, limit."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.encrypting import encrypting
from qmpkit.images.new import place_empty
from qmpkit.machine.drives import limit_drive
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.graph import Layer, graph_of, node_above, nodes_of
from qmpkit.operations.block.layers import (
    layer_blockdevs,
    making,
    remove_nodes,
    with_disks,
)
from qmpkit.operations.block.merge import change_place
from qmpkit.operations.block.saved_memory import refuse_saved
from qmpkit.operations.jobs import Progress, follow, free_job_id, job
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.undertaking import undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.block import Disk, DiskFormat
from qmpkit.spec.encryption import luks_faults
from qmpkit.spec.limits import IoLimits, limits_faults
from qmpkit.spec.options import text_problem
from qmpkit.spec.sizes import format_size, to_bytes
from qmpkit.spec.suggest import among

__all__ = ["chain_of", "flatten", "limit", "limit_again", "move", "resize"]

_SECTOR = 512


def disk_of(machine: Changeable, disk_id: str) -> Disk:
    """The disk of that id; SpecInvalid when the machine has none."""
    by_id = {disk.id: disk for disk in machine.spec.disks}
    if disk_id not in by_id:
        fault = Fault("disk", f"it has no disk {disk_id!r}", among(disk_id, by_id))
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    return by_id[disk_id]


async def chain_of(machine: Changeable, disk_id: str) -> tuple[Layer, ...]:
    """See `Disks.chain`."""
    disk_of(machine, disk_id)
    return (await graph_of(machine)).chain(disk_id)


async def move(
    machine: Changeable,
    disk_id: str,
    target: str | os.PathLike[str],
    *,
    format: DiskFormat,
    speed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """See `Disks.move`."""
    async with machine.changing:
        disk = _writable(machine, disk_id)
        graph = await graph_of(machine)
        chain = graph.chain(disk_id)
        path = Path(target).absolute()  # noqa: ASYNC240  # one getcwd
        new = attrs.evolve(
            disk,
            file=str(path),
            format=format,
            node=node_above(disk, chain[0], graph.names),
            driver="file",
            make=None,
            origin=disk.origin or disk.file,
        )
        faults = list(luks_faults(new.luks, format, disk_id))
        if problem := text_problem(new.file):
            faults.append(Fault("target", f"{new.file!r}: {problem}"))
        if faults:
            raise SpecInvalid(faults, f"machine {machine.name!r}")
        change = Change(
            what=f"move disk {disk_id!r} to {path}",
            spec=with_disks(machine.spec, [new]),
            begun=machine.spec,
            job=await free_job_id(machine, "move", disk_id),
            nodes=(str(new.node), f"{new.node}-file"),
            files=(str(path),),
            leaving=nodes_of(chain),
        )
        words = {"device": chain[0].node, "target": new.node, "sync": "full", "speed": speed}
        async with undertaking(machine, change) as it, making(machine) as made:
            made.file(await place_empty(path, chain[0].size, format, **await encrypting(disk.luks)))
            await it.made(made.files)
            await made.nodes(*layer_blockdevs(new))
            await change_place(
                machine,
                "blockdev-mirror",
                words,
                it,
                keep=made.keep,
                progress=progress,
            )
    return path


async def flatten(
    machine: Changeable, disk_id: str, *, speed: int = 0, progress: Progress | None = None
) -> None:
    """See `Disks.flatten`."""
    async with machine.changing:
        _writable(machine, disk_id)
        chain = (await graph_of(machine)).chain(disk_id)
        if len(chain) == 1:
            return
        name = await free_job_id(machine, "flatten", disk_id)
        asked = f"flatten disk {disk_id!r}"
        words = {"device": chain[0].node, "speed": speed}
        same = machine.spec
        below = nodes_of(chain[1:])
        change = Change(what=asked, spec=same, begun=same, job=name, nodes=below)
        async with undertaking(machine, change):
            try:
                async with job(machine, "block-stream", words, id=name, asked=asked) as running:
                    await follow(running, progress)
            finally:  # those that the disk still has are in use, and stay
                with trio.move_on_after(STEP_GRACE, shield=True):
                    await remove_nodes(machine, below)


async def resize(machine: Changeable, disk_id: str, size: int | str) -> int:
    """See `Disks.resize`."""
    async with machine.changing:
        _writable(machine, disk_id)
        top = (await graph_of(machine)).chain(disk_id)[0]
        wanted = to_bytes(size, "size")
        fault = None
        if wanted % _SECTOR:
            message = f"{format_size(wanted)} is not a whole number of 512-byte sectors"
            fault = Fault("size", message)
        elif wanted < top.size:
            message = f"it has {format_size(top.size)}, and a guest would lose what is beyond"
            hint = "shrink it when the machine is stopped: qmpkit image resize --shrink"
            fault = Fault("size", message, hint)
        if fault is not None:
            raise SpecInvalid([fault], f"machine {machine.name!r}, disk {disk_id!r}")
        if wanted > top.size:
            try:
                await machine.execute("block_resize", {"node-name": top.node, "size": wanted})
            except CommandRefused as refused:
                refused.cure = f"ask for less: {_at_most(top)}"
                raise
    return wanted


def _at_most(top: Layer) -> str:
    if top.format != "qcow2" or top.cluster_size is None:
        return "its file system bounds how large a file may be"
    # QEMU keeps 32 MiB of the first table at most, 8 bytes for each cluster of the second,
    # whose entries are of 8 bytes too (16 with subclusters).
    most = (32 << 20) // 8 * top.cluster_size // 8 * top.cluster_size
    size = format_size(top.cluster_size)
    return f"a qcow2 whose clusters have {size} holds {format_size(most)} at most"


async def limit(machine: Changeable, disk_id: str, limits: IoLimits | None) -> None:
    """See `Disks.limit`."""
    if limits is not None and (faults := list(limits_faults(limits, "limits"))):
        raise SpecInvalid(faults, f"machine {machine.name!r}, disk {disk_id!r}")
    async with machine.changing:
        disk = disk_of(machine, disk_id)
        wanted = attrs.evolve(disk, limits=None if limits == IoLimits() else limits)
        change = Change(
            what=f"limit disk {disk_id!r}",
            spec=with_disks(machine.spec, [wanted]),
            begun=machine.spec,
            sure=True,
        )
        async with undertaking(machine, change) as it:
            try:
                await _bound(machine, wanted)
            except BaseException:
                with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST, CommandRefused):
                    await _bound(machine, disk)
                raise
            it.done()


async def _bound(machine: Changeable, disk: Disk) -> None:
    # One that is down has them when it is started, an empty drive when it is filled.
    if not machine.is_down and not disk.is_empty:
        await limit_drive(machine, (await graph_of(machine)).device(disk.id), disk.limits)


async def limit_again(machine: Changeable, change: Change) -> None:
    """Have the bounds of the machine's spec, where *change* may have left others."""
    begun = {disk.id: disk.limits for disk in change.begun.disks}
    changed = {disk.id for disk in change.spec.disks if disk.limits != begun.get(disk.id)}
    for disk in machine.spec.disks:
        if disk.id in changed:
            await _bound(machine, disk)


def _writable(machine: Changeable, disk_id: str) -> Disk:
    disk = disk_of(machine, disk_id)
    if disk.is_readonly:
        fault = Fault("disk", f"{disk_id!r} is only read")
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    refuse_saved(machine.spec, disk_id)
    return disk
