"""A plug or an unplug whose program died: QEMU is asked what came of it."""

from __future__ import annotations

import attrs
import trio

from qmpkit.machine.drives import limit_drives
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.layers import remove_files
from qmpkit.operations.block.recovery import own_files
from qmpkit.operations.hotplug.plug import remove_parts
from qmpkit.operations.hotplug.unplug import plugged_devices
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.parts import Part

__all__ = ["recover_parts"]


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
    machine.spec = change.spec if done else change.begun
    return machine.spec


def _only(spec: MachineSpec, arrived: set[str]) -> MachineSpec:
    """*spec* with the disks that have come: nobody knows whether they were bound yet."""
    return attrs.evolve(spec, disks=[disk for disk in spec.disks if disk.id in arrived])
