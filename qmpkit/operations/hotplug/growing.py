"""Memory that grows and shrinks while the guest runs (virtio-mem)."""

from __future__ import annotations

import attrs
import trio

from qmpkit.errors import Fault, GuestRefused, HostLacks, SpecInvalid
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable, Monitor
from qmpkit.operations.hotplug.unplug import PERIPHERAL, machine_runs
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.undertaking import undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Subscription
from qmpkit.spec.check import validate
from qmpkit.spec.layout import pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.peripherals import VirtioMem
from qmpkit.spec.sizes import format_size, to_bytes
from qmpkit.spec.suggest import among

__all__ = [
    "RESIZE_GRACE",
    "grown_in",
    "refuse_used",
    "request",
    "requested",
    "resize",
    "stays",
]

RESIZE_GRACE = 60.0
"""Seconds in which a guest follows: 256 MiB take it 1 s under TCG."""

_CHANGED = "MEMORY_DEVICE_SIZE_CHANGE"


async def resize(
    machine: Changeable, size: int | str, device: str | None, grace: float
) -> VirtioMem:
    """See `GuestMemory.resize`."""
    async with machine.changing:
        old = pinned(machine.spec)
        found = _one(machine, device)
        wanted = attrs.evolve(found, requested=to_bytes(size, "size"))
        devices = [wanted if it.id == found.id else it for it in old.devices]
        new = attrs.evolve(old, devices=devices)
        validate(new)
        asked = f"to use {format_size(wanted.requested)} of {found.id!r}"
        if not await machine_runs(machine):
            raise GuestRefused(machine.name, asked, "it stands still")
        what = f"resize memory {found.id!r}"
        # Sure: when QEMU dies as well, a start asks the guest for it.
        change = Change(what=what, spec=new, begun=old, sure=True)
        with machine.subscribe(_CHANGED) as events:
            async with undertaking(machine, change) as it:
                try:
                    await request(machine, found.id, wanted.requested)
                    await _followed(machine, events, wanted, asked, grace)
                    it.done()
                except BaseException:
                    with trio.move_on_after(STEP_GRACE, shield=True):
                        await request(machine, found.id, found.requested)
                    raise
        return next(it for it in grown_in(new) if it.id == found.id)


def grown_in(spec: MachineSpec) -> tuple[VirtioMem, ...]:
    """The virtio-mem devices of *spec*."""
    return tuple(it for it in spec.devices if isinstance(it, VirtioMem))


def _one(machine: Changeable, device: str | None) -> VirtioMem:
    by_id = {it.id: it for it in grown_in(machine.spec)}
    if device is None and len(by_id) == 1:
        return next(iter(by_id.values()))
    if device in by_id:
        return by_id[device]
    if not by_id:
        hint = 'vm.devices.add(VirtioMem(size="4GiB")), or kind = "virtio-mem" in its spec'
        fault = Fault("device", "it has no virtio-mem device", hint)
    elif device is None:
        fault = Fault("device", "it has several virtio-mem devices", f"one of {', '.join(by_id)}")
    else:
        hint = among(device, by_id)
        fault = Fault("device", f"it has no virtio-mem device {device!r}", hint)
    raise SpecInvalid([fault], f"machine {machine.name!r}")


async def request(machine: Monitor, device: str, size: int) -> None:
    """Have the guest of *device* use so many bytes; it follows when it can."""
    words = {"path": f"{PERIPHERAL}/{device}", "property": "requested-size", "value": size}
    await machine.execute("qom-set", words)


async def requested(machine: Monitor, device: str) -> int:
    """What it was last asked for."""
    return await _property(machine, device, "requested-size")


async def _used(machine: Monitor, device: str) -> int:
    return await _property(machine, device, "size")


async def _property(machine: Monitor, device: str, name: str) -> int:
    return int(
        await machine.execute("qom-get", {"path": f"{PERIPHERAL}/{device}", "property": name})
    )


async def _followed(
    machine: Changeable, events: Subscription, wanted: VirtioMem, asked: str, grace: float
) -> None:
    with trio.move_on_after(grace):
        while await _used(machine, wanted.id) != wanted.requested:
            await events.next()
        return
    now = format_size(await _used(machine, wanted.id))
    raise GuestRefused(machine.name, asked, f"it used {now} after {grace:g} s")


async def refuse_used(machine: Changeable, device: VirtioMem) -> None:
    """Raise SpecInvalid while the guest uses some of it: QEMU takes only an empty one away."""
    if used := await _used(machine, device.id):
        message = f"its guest uses {format_size(used)} of it"
        fault = Fault(device.id, message, "vm.memory.resize(0) first")
        raise SpecInvalid([fault], f"machine {machine.name!r}")


def stays(machine: Monitor, device: VirtioMem, said: CommandRefused) -> HostLacks:
    """The error of a QEMU (7.2) that takes no such device away, also an empty one."""
    what = f"the QEMU of machine {machine.name!r} does not take {device.id!r} away: {said.desc}"
    return HostLacks(what, "a newer QEMU, as 10.0; resized to 0 it takes nothing of the host")
