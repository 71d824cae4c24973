"""Where every device sits. The only allocator of PCI addresses and virtio-mmio buses.

A guest's names for its disks and NICs, saved states and migration all depend on
addresses, so they are stated, and chosen such that adding one device moves no
other: fixed devices have fixed slots, NICs and disks have blocks of root ports of
their own (pcie.0 itself allows no hotplug), and NICs come first, because the bus
number in `enp1s0` counts the ports before it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.options import Json
from qmpkit.spec.switches import SWITCH_PORTS, SwitchPort, switch_devices

__all__ = [
    "DEVICE_PORTS",
    "DISK_PORTS",
    "FIXED_SLOTS",
    "NIC_PORTS",
    "SPARE_PORTS",
    "Layout",
    "Place",
    "RootPort",
    "Wish",
    "allocate_mmio",
    "allocate_pci",
    "last_ports",
    "port_devices",
    "port_problem",
]

FIXED_SLOTS = {
    "vga0": 1,
    "vserial0": 2,
    "rng0": 3,
    "balloon0": 4,
    "panic0": 5,
    "vsock0": 6,
    "keyboard0": 7,
    "scsi0": 8,
    "scsi1": 9,
    "scsi2": 10,
    "scsi3": 11,
    "usb0": 12,
}
"""Slots of pcie.0. 0 is the host bridge, 30 for switches, 31 q35's chipset; 13 to 15 are free."""

_FUNCTIONS = 8


@attrs.frozen
class _Block:
    """A row of root ports, eight to a slot of pcie.0."""

    prefix: str
    first_slot: int
    slots: int
    switched: int = 0  # ports of switches after those

    @property
    def size(self) -> int:
        return self.slots * _FUNCTIONS + self.switched


NIC_PORTS = _Block("nic-port", 0x10, 2)
DISK_PORTS = _Block("disk-port", 0x12, 6)
SPARE_PORTS = _Block("spare-port", 0x18, 4, SWITCH_PORTS)
DEVICE_PORTS = _Block("device-port", 0x1C, 2)
_BLOCKS = (NIC_PORTS, DISK_PORTS, SPARE_PORTS, DEVICE_PORTS)
_PORTS_THERE_ARE = (
    f"nic-port0 to {NIC_PORTS.size - 1}, disk-port0 to {DISK_PORTS.size - 1}, "
    f"device-port0 to {DEVICE_PORTS.size - 1}, spare-port0 up to root_ports"
)
_PORT_NAME = re.compile(r"(nic-port|disk-port|spare-port|device-port)(0|[1-9]\d{0,2})", re.ASCII)


@attrs.frozen
class Place:
    """A bus and, on PCI, the address on it."""

    bus: str
    addr: str | None = None

    def properties(self) -> Json:
        """What a device's dict says about its place."""
        return {"bus": self.bus} if self.addr is None else {"bus": self.bus, "addr": self.addr}

    def virtio(self, kind: str) -> str:
        """The driver of a virtio device of that kind on this sort of bus."""
        return f"virtio-{kind}-{'device' if self.addr is None else 'pci'}"


@attrs.frozen
class RootPort:
    """A PCI Express port that holds one device and can be plugged into while running."""

    name: str
    slot: int
    function: int

    @property
    def chassis(self) -> int:
        """A number of its own, which no other port's coming or going changes."""
        return (self.slot - NIC_PORTS.first_slot) * _FUNCTIONS + self.function + 1


@attrs.frozen
class Wish:
    """A device that wants a place: its id, its path in the spec, the bus it insists on."""

    id: str
    where: str
    bus: str | None = None


@attrs.frozen
class Layout:
    """The outcome: a place for every id, the ports to make, those of them for hotplug."""

    places: dict[str, Place]
    ports: tuple[RootPort | SwitchPort, ...] = ()
    empty: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


def allocate_pci(
    fixed: Iterable[str],
    nics: Sequence[Wish],
    disks: Sequence[Wish],
    spare: int,
    *,
    devices: Sequence[Wish] = (),
    kept: Iterable[str] = (),
) -> Layout:
    """Place everything on a board with PCI, and *spare* empty root ports for hotplug.

    *kept*: ports that are there in any case, as something sat in them or beyond them.
    """
    places = {name: Place("pcie.0", f"{FIXED_SLOTS[name]:#x}") for name in fixed}
    faults: list[Fault] = []
    taken: dict[str, Wish] = {}
    for wish in (*nics, *disks, *devices):
        if wish.bus is not None:
            faults += _claim(wish, spare, taken)
    faults += _fill(NIC_PORTS, nics, taken)
    faults += _fill(DISK_PORTS, disks, taken)
    faults += _fill(DEVICE_PORTS, devices, taken)
    if not 0 <= spare <= SPARE_PORTS.size:
        limit = f"there is room for 0 to {SPARE_PORTS.size} spare ports"
        faults.append(Fault("root_ports", f"too many devices for the slots: {limit}, not {spare}"))
        spare = 0
    places.update({wish.id: Place(bus, "0x0") for bus, wish in taken.items()})
    ports = tuple(_ports({*taken, *kept}, spare))
    return Layout(
        places=places,
        ports=ports,
        empty=tuple(port.name for port in ports if port.name not in taken),
        faults=tuple(faults),
    )


def _claim(wish: Wish, spare: int, taken: dict[str, Wish]) -> Iterator[Fault]:
    """Give `wish` the port it names."""
    assert wish.bus is not None
    where = f"{wish.where}.bus"
    found = _PORT_NAME.fullmatch(wish.bus)
    block = next((block for block in _BLOCKS if found and block.prefix == found[1]), None)
    room = 0 if block is None else spare if block is SPARE_PORTS else block.size
    if found is None or int(found[2]) >= room:
        yield Fault(where, f"there is no root port {wish.bus!r}", _PORTS_THERE_ARE)
    elif wish.bus in taken:
        yield Fault(where, f"root port {wish.bus!r} already holds {taken[wish.bus].id!r}")
    else:
        taken[wish.bus] = wish


def port_problem(name: str) -> str:
    """Why there can be no root port of that name; empty when there can."""
    found = _PORT_NAME.fullmatch(name)
    block = next((block for block in _BLOCKS if found and block.prefix == found[1]), None)
    if found is not None and block is not None and int(found[2]) < block.size:
        return ""
    return f"there is no root port {name!r}"


def _fill(block: _Block, wishes: Sequence[Wish], taken: dict[str, Wish]) -> Iterator[Fault]:
    """Give everyone without a wish of his own the lowest free port of the block."""
    wanting = [wish for wish in wishes if wish.bus is None]
    free = [name for name in _names(block, block.size) if name not in taken] if wanting else []
    for wish in wanting:
        if not free:
            kind = _KINDS[block.prefix]
            yield Fault(wish.where, f"too many devices for the slots: room for {block.size} {kind}")
            return
        taken[free.pop(0)] = wish


_KINDS = {
    NIC_PORTS.prefix: "NICs",
    DISK_PORTS.prefix: "disks with a slot of their own",
    DEVICE_PORTS.prefix: "devices",
}


def _names(block: _Block, count: int) -> list[str]:
    return [f"{block.prefix}{number}" for number in range(count)]


def _ports(taken: Collection[str], spare: int) -> Iterator[RootPort | SwitchPort]:
    """Every port up to the highest one in use: function 0 must exist for 1 to 7 to be found."""
    ends = dict.fromkeys(_KINDS, 0) | {SPARE_PORTS.prefix: spare}
    for found in filter(None, map(_PORT_NAME.fullmatch, taken)):
        ends[found[1]] = max(ends[found[1]], int(found[2]) + 1)
    for block in _BLOCKS:
        count = min(ends[block.prefix], block.size)
        for number, name in enumerate(_names(block, count)):
            slot, function = divmod(number, _FUNCTIONS)
            if slot < block.slots:
                yield RootPort(name, block.first_slot + slot, function)
            else:
                yield SwitchPort(name, number - block.slots * _FUNCTIONS)


def last_ports(ports: Iterable[RootPort | SwitchPort]) -> tuple[str, ...]:
    """The last of each row but the spare ones, whose number is the spec's own."""
    last = {port.name.rstrip("0123456789"): port.name for port in ports}
    return tuple(name for prefix, name in last.items() if prefix != SPARE_PORTS.prefix)


def port_devices(port: RootPort | SwitchPort) -> Iterator[Json]:
    """The `-device` of a port, and of the switch that begins with it."""
    if isinstance(port, SwitchPort):
        yield from switch_devices(port)
        return
    device: dict[str, object] = {
        "driver": "pcie-root-port",
        "id": port.name,
        "bus": "pcie.0",
        "addr": f"{port.slot:#x}.{port.function:x}",
        "chassis": port.chassis,
        "port": port.chassis,
    }
    if port.function == 0:
        device["multifunction"] = True
    yield device


def allocate_mmio(wishes: Sequence[Wish], two_ioapics: bool) -> Layout:
    """Place everything on a microvm: it has 24 virtio-mmio buses with two IOAPICs, else 8.

    With two, bus 0 is pin 0 of the second, from which Linux 6.1 gets no interrupt: its
    driver binds and then waits for ever (QEMU 7.2, TCG). So that bus stays empty. QEMU
    lists the buses to the guest from the last to the first: taken downwards, the first
    disk of the spec is the guest's vda.
    """
    buses = range(23, 0, -1) if two_ioapics else range(7, -1, -1)
    limit = len(buses)
    faults = [
        Fault(f"{wish.where}.bus", "microvm has no root ports", "leave bus out")
        for wish in wishes
        if wish.bus is not None
    ]
    if len(wishes) > limit:
        over = wishes[limit]
        room = f"microvm has room for {limit} virtio devices, this makes {len(wishes)}"
        faults.append(Fault(over.where, f"too many devices for the slots: {room}"))
    pairs = zip(wishes, buses, strict=False)
    places = {wish.id: Place(f"virtio-mmio-bus.{bus}") for wish, bus in pairs}
    return Layout(places=places, faults=tuple(faults))
