"""Devices that go without being told to: the guest lets go late, or by its own decision."""

from __future__ import annotations

import logging
from contextlib import suppress

import attrs

from qmpkit.errors import QmpkitError
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.hotplug.disks import behind
from qmpkit.operations.hotplug.memory import located
from qmpkit.operations.hotplug.plug import unplug_parts
from qmpkit.operations.hotplug.unplug import is_plugged
from qmpkit.operations.steps import LOST
from qmpkit.operations.tune.nic_rates import freed
from qmpkit.spec.block import iothreads_of
from qmpkit.spec.layout import pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import without_dimm
from qmpkit.spec.parts import parts_between, parts_of

__all__ = ["follow_departures"]

log = logging.getLogger("qmpkit")


async def follow_departures(machine: Changeable) -> None:
    """Have the spec follow each device that goes when nobody waits for it.

    That is one whose unplug was cancelled, or given up, before the guest let go of it, and
    one that the guest has ejected by itself.  A service of the machine's own nursery.
    """
    with suppress(*LOST), machine.subscribe("DEVICE_DELETED") as events:
        async for event in events:
            if device := event.data.get("device"):
                try:
                    await _departed(machine, device)
                except LOST:
                    return
                except QmpkitError as error:
                    log.warning("machine %r has lost %r: %s", machine.name, device, error)


async def _departed(machine: Changeable, device: str) -> None:
    async with machine.changing.after_all():  # whoever has asked for it is through
        if _without(machine.spec, device) == machine.spec or await is_plugged(machine, device):
            return
        old = pinned(machine.spec)
        new = _without(old, device)
        new = await located(machine, new)
        going, _ = parts_between(parts_of(old), parts_of(new))
        parts = [part for part in going if part.kind not in ("node", "object")]
        for disk in old.disks:
            if disk.id == device:
                parts += await behind(machine, disk)
        parts += [part for part in going if part.kind == "object"]  # after who uses it
        what = f"do without {device!r}, which its guest has let go of"
        await unplug_parts(machine, what, new, parts)
        for nic in old.nics:
            if nic.id == device:
                await freed(nic)


def _without(spec: MachineSpec, device: str) -> MachineSpec:
    """*spec* without what has that id, and without pins of iothreads that nothing has then."""
    new = attrs.evolve(
        spec,
        disks=[it for it in spec.disks if it.id != device],
        nics=[it for it in spec.nics if it.id != device],
        devices=[it for it in spec.devices if it.id != device],
        memory=without_dimm(spec.memory, device),
    )
    used = iothreads_of(new.disks)
    pins = {name: at for name, at in new.resources.iothreads.items() if name in used}
    return attrs.evolve(new, resources=attrs.evolve(new.resources, iothreads=pins))
