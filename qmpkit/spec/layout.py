"""Which devices a spec means, and where they sit."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from qmpkit.errors import Fault
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

__all__ = [
    "AGENT",
    "VSERIAL",
    "Unit",
    "layout_of",
    "fixed_devices",
    "pinned",
    "scsi_controllers",
    "scsi_faults",
    "scsi_units",
]

VSERIAL = "vserial0"
AGENT = "agent0"
_SCSI_IDS = 256
_SCSI = ("virtio-scsi", "scsi-cdrom")


@attrs.frozen
class Unit:
    """A SCSI disk's controller and its number there."""

    disk: Disk
    controller: str
    number: int


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
    controllers = [name for name in _scsi_controllers(spec).values() if name in FIXED_SLOTS]
    return fixed + [(name, "disks") for name in controllers]


def _keyboard_wanted(spec: MachineSpec) -> bool:
    """On virt: for the screen, and for the power button that riscv64's lacks."""
    board = board_of(spec.machine, spec.arch)
    screen = spec.display != "none" and family_of(spec.machine) == "virt"
    return screen or (board is not None and not board.button)


def _scsi_controllers(spec: MachineSpec) -> dict[str | None, str]:
    """A controller for every iothread that SCSI disks name, and one for those without."""
    threads = dict.fromkeys(disk.iothread for disk in spec.disks if disk.interface in _SCSI)
    return {thread: f"scsi{number}" for number, thread in enumerate(threads)}


def scsi_controllers(spec: MachineSpec) -> list[tuple[str, str | None]]:
    """(controller's id, its iothread)."""
    return [(name, thread) for thread, name in _scsi_controllers(spec).items()]


def scsi_units(spec: MachineSpec) -> list[Unit]:
    """Every SCSI disk with its controller and number, in the order of the spec."""
    controllers = _scsi_controllers(spec)
    count = dict.fromkeys(controllers.values(), 0)
    units: list[Unit] = []
    for disk in spec.disks:
        if disk.interface in _SCSI:
            controller = controllers[disk.iothread]
            units.append(Unit(disk, controller, count[controller]))
            count[controller] += 1
    return units


def scsi_faults(spec: MachineSpec) -> Iterator[Fault]:
    """SCSI disks beyond the controllers' room, and controllers beyond their slots."""
    units = {unit.disk.id: unit for unit in scsi_units(spec)}
    full = set()
    for number, disk in enumerate(spec.disks):
        unit = units.get(disk.id)
        if unit is None or unit.controller in full:
            continue
        if unit.controller not in FIXED_SLOTS:
            room = "room for 4 SCSI controllers, one an iothread"
            yield Fault(f"disks[{number}].iothread", f"too many devices for the slots: {room}")
        elif unit.number >= _SCSI_IDS:
            room = f"a SCSI controller has room for {_SCSI_IDS} disks"
            yield Fault(f"disks[{number}]", f"too many devices for the slots: {room}")
        else:
            continue
        full.add(unit.controller)


def layout_of(spec: MachineSpec) -> Layout:
    """A place for every device; what has none is a fault of the layout."""
    nics = [Wish(nic.id, f"nics[{n}]", nic.bus) for n, nic in enumerate(spec.nics)]
    disks = [
        Wish(disk.id, f"disks[{n}]", disk.bus)
        for n, disk in enumerate(spec.disks)
        if on_root_port(disk)
    ]
    fixed = fixed_devices(spec)
    if family_of(spec.machine) == "microvm":
        return allocate_mmio([*(Wish(*item) for item in fixed), *nics, *disks], _two_ioapics(spec))
    layout = allocate_pci(
        [name for name, _ in fixed], nics, disks, spec.root_ports, spec.last_ports
    )
    for unit, disk in enumerate(disk for disk in spec.disks if disk.interface == "cdrom"):
        layout.places[disk.id] = Place(f"ide.{unit}")
    return layout


def pinned(spec: MachineSpec) -> MachineSpec:
    """The same machine with its root ports, and that of every NIC and disk, written down.

    For a spec that follows a running machine: unplugging one disk must not move
    the next one's address in the command line of a migration's destination.
    """
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
        last_ports=last_ports(layout.ports),
    )
