"""Deleting snapshots: all of one machine's disks are looked at before any is merged.

A merge cannot be taken back, so what is refused is refused while nothing has changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.inner_snapshots import delete_inner
from qmpkit.operations.block.merge import delete_point, place_of, without_point
from qmpkit.operations.block.snapshots import known_snapshot
from qmpkit.operations.jobs import Progress
from qmpkit.operations.undertaking import undertaking
from qmpkit.spec.snapshots import Snapshot

__all__ = ["delete", "refuse_deletion"]


async def delete(
    machine: Changeable, name: str, *, speed: int = 0, progress: Progress | None = None
) -> None:
    """Delete a snapshot; see `Snapshots.delete`."""
    async with machine.changing:
        point = known_snapshot(machine.spec, name)
        if point.kind == "internal":
            return await delete_inner(machine, point)
        await _refuse(machine, point, [*point.disks][1:])  # the first is looked at in its turn
        if not point.disks:
            return await _delete_bare(machine, point)
        for disk_id in point.disks:
            point = known_snapshot(machine.spec, name)
            await delete_point(machine, disk_id, point, speed=speed, progress=progress)
    return None


async def refuse_deletion(machine: Changeable, name: str) -> None:
    """Raise SpecInvalid when `delete` would: for who is to delete those of several machines."""
    async with machine.changing:
        point = known_snapshot(machine.spec, name)
        if point.kind == "external":
            await _refuse(machine, point, point.disks)


async def _refuse(machine: Changeable, point: Snapshot, disks: Iterable[str]) -> None:
    known = {disk.id for disk in machine.spec.disks}
    if strange := [disk for disk in point.disks if disk not in known]:
        fault = Fault(point.name, f"the machine has no disk {strange[0]!r} any more")
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    if point.memory is not None and point.memory == machine.spec.resume_from:
        hint = "start it, or go back to another snapshot"
        fault = Fault(point.name, "the machine is to go on with its memory", hint)
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    for disk_id in disks:
        await place_of(machine, disk_id, point)


async def _delete_bare(machine: Changeable, point: Snapshot) -> None:
    """One of a machine without disks: its files go."""
    change = Change(
        what=f"delete the snapshot {point.name!r}",
        spec=without_point(machine.spec, "", point),
        begun=machine.spec,
        sure=True,
        obsolete=point.beside,
    )
    async with undertaking(machine, change) as it:
        it.done()
