"""Controllers of SCSI and USB, and which number each device has on its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.addresses import FIXED_SLOTS, Place
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.peripherals import Controller, ScsiController, UsbController, UsbDevice
from qmpkit.spec.suggest import suggestion

__all__ = ["Unit", "controllers", "implied_controllers", "unit_faults", "units_of"]

_SCSI = ("virtio-scsi", "scsi-cdrom")
_SCSI_IDS = 256


@attrs.frozen
class Unit:
    """Where a device sits that is on a controller: its number there, counted from 0."""

    controller: str
    number: int

    @property
    def place(self) -> Place:
        """The controller's bus."""
        return Place(f"{self.controller}.0")


@attrs.frozen
class _Wish:
    """A device that wants a controller: of which kind, which one, and which number there."""

    id: str
    where: str
    usb: bool
    iothread: str | None
    controller: str | None
    number: int | None


def _wishes(spec: MachineSpec) -> Iterator[_Wish]:
    for number, disk in enumerate(spec.disks):
        usb = disk.interface == "usb"
        if usb or disk.interface in _SCSI:
            at = f"disks[{number}]"
            yield _Wish(disk.id, at, usb, disk.iothread, disk.controller, disk.unit)
    for number, device in enumerate(spec.devices):
        if isinstance(device, UsbDevice):
            at = f"devices[{number}]"
            yield _Wish(device.id, at, True, None, device.controller, device.unit)


def implied_controllers(spec: MachineSpec) -> tuple[Controller, ...]:
    """Those that devices need and the spec does not list: one for each iothread, one for USB."""
    listed = [device for device in spec.devices if isinstance(device, Controller)]
    taken = {device.id for device in spec.devices}
    names = (name for n in itertools.count() if (name := f"scsi{n}") not in taken)
    wishes = [wish for wish in _wishes(spec) if wish.controller is None]
    threads = dict.fromkeys(wish.iothread for wish in wishes if not wish.usb)
    there = {device.iothread for device in listed if isinstance(device, ScsiController)}
    found: list[Controller] = [
        ScsiController(id=next(names), iothread=thread) for thread in threads if thread not in there
    ]
    has_usb = any(isinstance(device, UsbController) for device in listed)
    if not has_usb and any(wish.usb for wish in wishes):
        found.append(UsbController(id="usb0"))
    return tuple(found)


def controllers(spec: MachineSpec) -> tuple[Controller, ...]:
    """All controllers, in the order in which they are made."""
    listed = (device for device in spec.devices if isinstance(device, Controller))
    return (*listed, *implied_controllers(spec))


def units_of(spec: MachineSpec) -> dict[str, Unit]:
    """The place of each device that is on a controller, by its id, in the order of the spec."""
    there = controllers(spec)
    wishes = [(wish, _controller_of(wish, there)) for wish in _wishes(spec)]
    taken: dict[str, set[int]] = {}
    for wish, controller in wishes:
        if wish.number is not None:
            taken.setdefault(controller, set()).add(wish.number)
    units = {}
    for wish, controller in wishes:
        used = taken.setdefault(controller, set())
        number = wish.number
        if number is None:
            number = next(n for n in itertools.count() if n not in used)
            used.add(number)
        units[wish.id] = Unit(controller, number)
    return units


def _controller_of(wish: _Wish, there: Iterable[Controller]) -> str:
    if wish.controller is not None:
        return wish.controller
    for controller in there:
        match controller:
            case UsbController() if wish.usb:
                return controller.id
            case ScsiController() if not wish.usb and controller.iothread == wish.iothread:
                return controller.id
    raise AssertionError("every device without one implies one")


def unit_faults(spec: MachineSpec) -> Iterator[Fault]:
    """Controllers that are not there or have no room, numbers that are given twice."""
    there = {controller.id: controller for controller in controllers(spec)}
    units = units_of(spec)
    full: set[str] = set()
    first: dict[Unit, str] = {}
    for wish in _wishes(spec):
        unit = units[wish.id]
        if unit.controller in full:
            continue
        if fault := _fault(wish, unit, there, first):
            full.add(unit.controller)
            yield fault
        first.setdefault(unit, wish.id)


def _fault(
    wish: _Wish, unit: Unit, there: Mapping[str, Controller], first: Mapping[Unit, str]
) -> Fault | None:
    controller = there.get(unit.controller)
    kind = UsbController if wish.usb else ScsiController
    if not isinstance(controller, kind):
        of_kind = tuple(name for name, it in there.items() if isinstance(it, kind))
        message = f"there is no {'USB' if wish.usb else 'SCSI'} controller {unit.controller!r}"
        return Fault(f"{wish.where}.controller", message, suggestion(unit.controller, of_kind))
    if controller.bus is None and not wish.usb and _is_beyond(controller.id, wish):
        message = "too many devices for the slots: room for 4 SCSI controllers, one an iothread"
        return Fault(f"{wish.where}.iothread", message)
    room = controller.ports if isinstance(controller, UsbController) else _SCSI_IDS
    if not 0 <= unit.number < room:
        what = "a USB" if wish.usb else "a SCSI"
        message = f"{what} controller has room for {room} {'devices' if wish.usb else 'disks'}"
        return Fault(wish.where, f"too many devices for the slots: {message}")
    if unit in first:
        message = f"{unit.number} is already the place of {first[unit]!r} on {unit.controller!r}"
        return Fault(f"{wish.where}.unit", message)
    return None


def _is_beyond(controller: str, wish: _Wish) -> bool:
    """Whether it is one that is implied, and has no slot of its own."""
    return wish.controller is None and controller not in FIXED_SLOTS
