"""Which devices a spec means, and where they sit."""

from __future__ import annotations

from typing import TypeVar

import attrs

from qmpkit.spec.addresses import (
    FIXED_SLOTS,
    Layout,
    Place,
    Wish,
    allocate_mmio,
    allocate_pci,
    last_ports,
)
from qmpkit.spec.block import Disk, on_root_port
from qmpkit.spec.boards import board_of, family_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.peripherals import Controller, Device, UsbDevice, evolved
from qmpkit.spec.units import Unit, controllers, implied_controllers, units_of

__all__ = [
    "AGENT",
    "VSERIAL",
    "layout_of",
    "fixed_devices",
    "pinned",
]

_Item = TypeVar("_Item", Disk, Device)

VSERIAL = "vserial0"
AGENT = "agent0"


def _two_ioapics(spec: MachineSpec) -> bool:
    """Whether a microvm has its second IOAPIC: not without ACPI, not when switched off."""
    options = spec.machine_options
    return not any(options.get(name, True) in (False, "off") for name in ("acpi", "ioapic2"))


def fixed_devices(spec: MachineSpec) -> list[tuple[str, str]]:
    """(id, path in the spec) of the devices that have a place of their own for ever."""
    vserial = spec.agent or any(serial.kind == "virtio" for serial in spec.serials)
    wanted = [
        ("vga0", "display", spec.display != "none"),
        (VSERIAL, "agent", vserial),
        ("rng0", "rng", spec.rng),
        ("balloon0", "balloon", spec.balloon),
        ("panic0", "panic", spec.panic and family_of(spec.machine) != "microvm"),
        ("vsock0", "vsock", spec.vsock is not None),
        ("keyboard0", "display", _keyboard_wanted(spec)),
    ]
    fixed = [(name, where) for name, where, on in wanted if on]
    listed = {device.id for device in spec.devices}
    there = [it.id for it in controllers(spec) if _is_fixed(it)]
    return fixed + [(name, "devices" if name in listed else "disks") for name in there]


def _is_fixed(device: Device) -> bool:
    """Whether it is a controller in a slot that is its own, as those that are implied are."""
    return isinstance(device, Controller) and device.bus is None and device.id in FIXED_SLOTS


def _keyboard_wanted(spec: MachineSpec) -> bool:
    """On virt: for the screen, and for the power button that riscv64's lacks."""
    board = board_of(spec.machine, spec.arch)
    screen = spec.display != "none" and family_of(spec.machine) == "virt"
    return screen or (board is not None and not board.button)


def layout_of(spec: MachineSpec) -> Layout:
    """A place for every device; what has none is a fault of the layout."""
    nics = [Wish(nic.id, f"nics[{n}]", nic.bus) for n, nic in enumerate(spec.nics)]
    disks = [
        Wish(disk.id, f"disks[{n}]", disk.bus)
        for n, disk in enumerate(spec.disks)
        if on_root_port(disk)
    ]
    devices = [
        Wish(device.id, f"devices[{n}]", device.bus)
        for n, device in enumerate(spec.devices)
        if not isinstance(device, UsbDevice) and not _is_fixed(device)
    ]
    fixed = fixed_devices(spec)
    if family_of(spec.machine) == "microvm":
        wishes = [*(Wish(*item) for item in fixed), *nics, *disks, *devices]
        return allocate_mmio(wishes, _two_ioapics(spec))
    layout = allocate_pci(
        [name for name, _ in fixed],
        nics,
        disks,
        spec.root_ports,
        devices=devices,
        kept=spec.last_ports,
    )
    for unit, disk in enumerate(disk for disk in spec.disks if disk.interface == "cdrom"):
        layout.places[disk.id] = Place(f"ide.{unit}")
    return layout


def pinned(spec: MachineSpec) -> MachineSpec:
    """The same machine with all that is chosen written down: ports, controllers, numbers there.

    For a spec that follows a running machine: unplugging one disk must not move
    the next one's address in the command line of a migration's destination.
    """
    units = units_of(spec)
    spec = attrs.evolve(
        spec,
        disks=[_on_unit(disk, units.get(disk.id)) for disk in spec.disks],
        devices=[
            *(_on_unit(device, units.get(device.id)) for device in spec.devices),
            *implied_controllers(spec),
        ],
    )
    if family_of(spec.machine) == "microvm":
        return spec
    layout = layout_of(spec)
    places = layout.places
    return attrs.evolve(
        spec,
        disks=[
            attrs.evolve(disk, bus=places[disk.id].bus) if on_root_port(disk) else disk
            for disk in spec.disks
        ],
        nics=[attrs.evolve(nic, bus=places[nic.id].bus) for nic in spec.nics],
        devices=[
            device
            if isinstance(device, UsbDevice) or _is_fixed(device)
            else evolved(device, bus=places[device.id].bus)
            for device in spec.devices
        ],
        last_ports=last_ports(layout.ports),
    )


def _on_unit(item: _Item, unit: Unit | None) -> _Item:
    if unit is None:
        return item
    return evolved(item, controller=unit.controller, unit=unit.number)
