"""Devices of any other kind that come and go while the guest runs."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.check_devices import check_devices
from qmpkit.host.findings import raise_problems
from qmpkit.host.resolve import with_absolute_paths
from qmpkit.machine.shares import Shares
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.hotplug import growing
from qmpkit.operations.hotplug.errors import UnplugPending
from qmpkit.operations.hotplug.memory import check_room, located
from qmpkit.operations.hotplug.places import additions, changes_between, empty_port
from qmpkit.operations.hotplug.plug import plug_parts, unplug_parts
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.addresses import DEVICE_PORTS
from qmpkit.spec.chardev import NamedEndpoint
from qmpkit.spec.check import validate
from qmpkit.spec.device_ids import free_id
from qmpkit.spec.layout import pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import chardev_id
from qmpkit.spec.peripherals import (
    DEVICE_KINDS,
    Controller,
    Device,
    ScsiController,
    Share,
    UsbController,
    UsbDevice,
    VirtioMem,
    evolved,
)
from qmpkit.spec.suggest import among
from qmpkit.spec.units import controllers

__all__ = ["Sharing", "add_device", "plug_device", "remove_device", "with_controller"]


class Sharing(Changeable, Protocol):
    """A machine that can share directories."""

    shares: Shares


async def add_device(machine: Sharing, device: Device) -> Device:
    """See `Devices.add`."""
    async with machine.changing:
        if not isinstance(device, tuple(DEVICE_KINDS.values())):
            raise SpecInvalid([Fault("device", f"cannot be {device!r}")], _whose(machine))
        device = await _checked(machine, device)
        if isinstance(device, UsbDevice) and device.controller is None:
            await with_controller(machine, usb=True)
        if isinstance(device, Share) and device.served:
            async with machine.shares.plugging(device) as cable:
                device = await plug_device(machine, device, cable.fileno())
        else:
            device = await plug_device(machine, device)
        return _device_of(machine, machine.spec, device.id)


async def _checked(machine: Changeable, device: Device) -> Device:
    """The device with an id, and paths for ever; raises all that stands in the way."""
    spec = machine.spec
    device = _named(spec, device)
    draft = with_absolute_paths(attrs.evolve(spec, devices=[*spec.devices, device]))
    validate(draft)
    device = draft.devices[-1]
    alone = attrs.evolve(draft, devices=[device])
    problems = await trio.to_thread.run_sync(lambda: list(check_devices(alone)))
    raise_problems(problems, f"{_whose(machine)}, device {device.id!r}")
    if isinstance(device, VirtioMem):
        await check_room(draft, device)
    return device


async def plug_device(machine: Changeable, device: Device, cable: int | None = None) -> Device:
    """Plug one device; the caller holds `machine.changing`.

    *cable*: a socket that leads to what serves it.
    """
    old = pinned(machine.spec)
    device = _named(old, device)
    if not isinstance(device, UsbDevice) and device.bus is None:
        bus = await empty_port(machine, old, device.id, DEVICE_PORTS.prefix, "device")
        device = evolved(device, bus=bus)
    new = pinned(attrs.evolve(old, devices=[*old.devices, device]))
    device = next(it for it in new.devices if it.id == device.id)
    name = chardev_id(device.id)
    fds = {} if cable is None else {name: cable}
    parts = additions(old, new, endpoints={device.id: NamedEndpoint(name)} if fds else None)
    where = partial(located, machine, new) if isinstance(device, VirtioMem) else None
    await plug_parts(machine, f"add device {device.id!r}", new, parts, fds=fds, last=where)
    return device


async def with_controller(machine: Changeable, *, usb: bool, iothread: str | None = None) -> None:
    """Plug a controller for what is to sit on one, when the machine has none that would do.

    A change of its own: it stays, empty, when what was to sit on it cannot be plugged.
    """
    for it in controllers(machine.spec):
        match it:
            case UsbController() if usb:
                return
            case ScsiController() if not usb and it.iothread == iothread:
                return
    await plug_device(machine, UsbController() if usb else ScsiController(iothread=iothread))


async def remove_device(machine: Changeable, device_id: str, grace: float) -> Device:
    """See `Devices.remove`."""
    async with machine.changing:
        old = pinned(machine.spec)
        device = _device_of(machine, old, device_id)
        if isinstance(device, Controller):
            _refuse_used(machine, old, device_id)
        if isinstance(device, VirtioMem):
            await growing.refuse_used(machine, device)
        new = attrs.evolve(old, devices=[it for it in old.devices if it.id != device_id])
        going, _ = changes_between(old, new)
        try:
            await unplug_parts(machine, f"remove device {device_id!r}", new, going, grace=grace)
        except UnplugPending as error:
            if isinstance(device, VirtioMem) and isinstance(error.__cause__, CommandRefused):
                raise growing.stays(machine, device, error.__cause__) from error.__cause__
            raise
    return device


def _named(spec: MachineSpec, device: Device) -> Device:
    return device if device.id else evolved(device, id=free_id(spec, *device.prefix))


def _device_of(machine: Changeable, spec: MachineSpec, device_id: str) -> Device:
    by_id = {device.id: device for device in spec.devices}
    if device_id not in by_id:
        hint = among(device_id, by_id)
        fault = Fault("device", f"it has no device {device_id!r} that can be removed", hint)
        raise SpecInvalid([fault], _whose(machine))
    return by_id[device_id]


def _refuse_used(machine: Changeable, spec: MachineSpec, device_id: str) -> None:
    users = [it.id for it in (*spec.disks, *spec.devices) if _sits_on(it, device_id)]
    if users:
        fault = Fault(device_id, f"on it sit {', '.join(users)}", "remove them first")
        raise SpecInvalid([fault], _whose(machine))


def _sits_on(item: object, controller: str) -> bool:
    return getattr(item, "controller", None) == controller


def _whose(machine: Changeable) -> str:
    return f"machine {machine.name!r}"
