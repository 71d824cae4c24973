"""Back to an external snapshot, for a machine that is down: new layers above its files."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.layered import mark_layered
from qmpkit.images.drafts import Placed
from qmpkit.images.encrypting import encrypting
from qmpkit.images.new import place_overlay
from qmpkit.images.varstore import place_store
from qmpkit.machine.ledger import Change
from qmpkit.operations.block.layers import with_disks
from qmpkit.operations.block.snapshots import known_snapshot
from qmpkit.operations.block.variables import on_new_store, store_of
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.spec.block import Disk
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.snapshots import Snapshot, layer_file

__all__ = ["overlaid", "overlays_made", "reverted"]


async def reverted(spec: MachineSpec, name: str, *, memory: bool = True) -> MachineSpec:
    """The spec by which a machine that is down starts from a snapshot; its new layers are made.

    With one that has the RAM in a file the guest goes on where it was, unless *memory* is
    false.  For a machine of your own: of a kept one `Supervisor.revert` writes it down.
    Raises SpecInvalid for an unknown snapshot, ImageFailed.
    """
    change, _ = await overlaid(spec, name, memory=memory)
    await overlays_made(change)
    return change.spec


async def overlaid(
    spec: MachineSpec, name: str, *, memory: bool = True
) -> tuple[Change, tuple[str, ...]]:
    """What is to be done to go back, and the files that the machine writes to until then.

    Without *memory* its RAM is left, when it has any: the guest boots.

    Raises SpecInvalid when there is no such snapshot, or no going back to it in this way.
    """
    point = known_snapshot(spec, name)
    if faults := _faults(spec, point):
        raise SpecInvalid(faults, f"machine {spec.name!r}")
    disks = [disk for disk in spec.disks if disk.id in point.disks]
    changed = [await trio.to_thread.run_sync(_on_new_layer, disk, point) for disk in disks]
    done = attrs.evolve(
        with_disks(spec, changed),
        snapshot=name,
        resume_from=point.memory if memory else None,
    )
    files = [disk.file for disk in changed]
    leaving = [disk.file for disk in disks]
    if point.variables is not None and (store := store_of(spec)) is not None:
        done = await trio.to_thread.run_sync(on_new_store, done, name)
        files.append(str(store_of(done)))
        leaving.append(store)
    change = Change(
        what=f"go back to the snapshot {name!r}",
        spec=done,
        begun=spec,
        sure=True,  # an empty layer shows the point
        files=tuple(files),
    )
    points = {file for it in spec.snapshots for file in it.disks.values()}
    return change, tuple(file for file in leaving if file not in points)


async def overlays_made(change: Change) -> None:
    """Make the layers of a change that goes back; none is left when one cannot be made."""
    (point,) = (it for it in change.spec.snapshots if it.name == change.spec.snapshot)
    made: list[Placed] = []
    try:
        for disk in change.spec.disks:
            if disk.file in change.files:
                base, base_format = point.disks[disk.id], point.formats[disk.id]
                how = await encrypting(disk.luks)
                made.append(await place_overlay(disk.file, base, base_format, "qcow2", **how))
                await trio.to_thread.run_sync(mark_layered, Path(base), Path(disk.file))
        store = store_of(change.spec)
        if store in change.files and point.variables is not None:
            made.append(await place_store(store, point.variables))
    except BaseException:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await trio.to_thread.run_sync(_unlink, made, abandon_on_cancel=True)
        raise


def _faults(spec: MachineSpec, point: Snapshot) -> list[Fault]:
    if point.kind == "internal":
        hint = "start the machine paused, and load it"
        return [Fault(point.name, "it holds the memory too, which only a running QEMU takes", hint)]
    if not point.whole:
        message = "its removal was begun: it does not show that moment any more"
        return [Fault(point.name, message, "delete it")]
    known = {disk.id for disk in spec.disks}
    return [
        Fault(point.name, f"the machine has no disk {disk!r} any more")
        for disk in point.disks
        if disk not in known
    ]


def _on_new_layer(disk: Disk, point: Snapshot) -> Disk:
    """On a file that is not there yet; blocking."""
    origin = disk.origin or disk.file
    names = (layer_file(origin, f"{point.name}-{number}") for number in count(1))
    file = next(name for name in names if not os.path.lexists(name))
    return attrs.evolve(
        disk, file=file, format="qcow2", driver="file", node=None, make=None, origin=origin
    )


def _unlink(made: list[Placed]) -> None:
    for placed in made:
        Path(placed.path).unlink(missing_ok=True)
