"""A plug, an unplug or a resize whose program died: QEMU is asked what came of it."""

from __future__ import annotations

import attrs
import trio

from qmpkit.machine.drives import limit_drives
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.layers import remove_files
from qmpkit.operations.block.recovery import own_files
from qmpkit.operations.hotplug.growing import grown_in, request, requested
from qmpkit.operations.hotplug.memory import located
from qmpkit.operations.hotplug.plug import remove_parts
from qmpkit.operations.hotplug.unplug import plugged_devices
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.parts import Part

__all__ = ["changes_memory", "recover_memory", "recover_parts"]


async def recover_parts(machine: Changeable, change: Change) -> MachineSpec:
    """End or undo *change* on a machine that lives; what it is started from the next time.

    `machine.spec` is set, and of parts that are not in use none is left.
    """
    coming, going = [[Part.named(it) for it in row] for row in (change.coming, change.going)]
    there = await plugged_devices(machine)
    arrived = [it for it in coming if it.kind == "device" and it.id in there]
    done = len(arrived) == sum(it.kind == "device" for it in coming)
    done = done and not any(it.kind == "device" and it.id in there for it in going)
    if done:
        await remove_parts(machine, [it for it in going if it.kind != "device"])
        await limit_drives(machine, _only(change.spec, {it.id for it in arrived}))
    else:
        # One that its guest does not let go of stays, and is told of as a difference.
        await remove_parts(machine, reversed(coming))
        await remove_files(machine, await trio.to_thread.run_sync(own_files, change))
    machine.spec = await located(machine, change.spec) if done else change.begun
    return machine.spec


def _only(spec: MachineSpec, arrived: set[str]) -> MachineSpec:
    """*spec* with the disks that have come: nobody knows whether they were bound yet."""
    return attrs.evolve(spec, disks=[disk for disk in spec.disks if disk.id in arrived])


def changes_memory(change: Change) -> bool:
    """Whether modules or virtio-mem devices are others after it that neither come nor go.  Pure."""
    before, after = [(it.memory.dimms, grown_in(it)) for it in _both(change)]
    return before != after


async def recover_memory(machine: Changeable, change: Change) -> MachineSpec:
    """See `recover_parts`; of a size that QEMU has been told, the guest follows it still."""
    before, after = [{it.id: it.requested for it in grown_in(spec)} for spec in _both(change)]
    others = [name for name, size in after.items() if before.get(name, size) != size]
    done = all([await requested(machine, name) == after[name] for name in others])
    wanted = after if done else before
    for name in others:  # should somebody else have told it another one
        await request(machine, name, wanted[name])
    machine.spec = change.spec if done else change.begun
    return machine.spec


def _both(change: Change) -> tuple[MachineSpec, MachineSpec]:
    return change.begun, change.spec
