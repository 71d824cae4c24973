"""Where a device can come to sit while its machine runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations._protocols import Changeable, Monitor
from qmpkit.operations.hotplug.errors import NoPortLeft
from qmpkit.operations.hotplug.unplug import PERIPHERAL
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.boards import board_of
from qmpkit.spec.check import validate
from qmpkit.spec.dimms import DIMM_DRIVER
from qmpkit.spec.encryption import BaseImage
from qmpkit.spec.layout import layout_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Cable
from qmpkit.spec.parts import Part, parts_between, parts_of, refused_changes

__all__ = ["RootPorts", "additions", "changes_between", "empty_port", "root_ports"]

_FIXED_BUSES = ("pcie.0", "virtio-mmio-bus.", "ide.")


@attrs.frozen
class RootPorts:
    """The root ports of a machine: `used` by what sits in them, `empty` those for hotplug."""

    used: dict[str, str]
    empty: tuple[str, ...]

    @property
    def left(self) -> int:
        """How many devices can be plugged."""
        return len(self.empty)


def root_ports(spec: MachineSpec) -> RootPorts:
    """The ports of a machine, by what is known of it.  Pure."""
    layout = layout_of(spec)
    ports = {port.name for port in layout.ports}
    used = {place.bus: name for name, place in layout.places.items() if place.bus in ports}
    return RootPorts(used, layout.empty)


async def empty_port(
    machine: Changeable, spec: MachineSpec, device: str, prefix: str, where: str
) -> str:
    """A root port for *device*, of the row *prefix* if one of that is empty.

    Raises NoPortLeft, and SpecInvalid on a board that has none.
    """
    board = board_of(spec.machine, spec.arch)
    if board is not None and not board.pci:
        fault = Fault(where, f"{board.name} has no PCI: nothing can be plugged there")
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    ports = root_ports(spec)
    for port in sorted(ports.empty, key=lambda name: not name.startswith(prefix)):
        if not await _holds_something(machine, port):
            return port
    there = len(ports.used) + len(ports.empty)
    raise NoPortLeft(machine.name, device, there, spec.root_ports)


async def _holds_something(machine: Monitor, port: str) -> bool:
    """Whether somebody else has plugged there, which QEMU 7.2 does not say."""
    try:
        bus = await machine.execute("qom-list", {"path": f"{PERIPHERAL}/{port}/{port}"})
    except CommandRefused:
        return True  # it is not there: a machine that was started otherwise
    return any(it["name"].startswith("child[") for it in bus)


def changes_between(
    old: MachineSpec,
    new: MachineSpec,
    endpoints: Mapping[str, Cable] | None = None,
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """What goes and what comes between two specs of a machine that runs.  Pure.

    *endpoints*: of NICs that come with their cable.

    Raises SpecInvalid when *new* makes no sense, or not without a restart.
    """
    validate(new)
    return _between(old, new, endpoints)


def additions(
    old: MachineSpec,
    new: MachineSpec,
    bases: Mapping[str, Sequence[BaseImage]] | None = None,
    *,
    endpoints: Mapping[str, Cable] | None = None,
) -> tuple[Part, ...]:
    """What comes, when *new* was found to make sense but for the place that it has got now.

    A guest waits for its device as long as all of a spec is looked at once more.  *bases*:
    of encrypted disks that come, *endpoints*: of shares.  Raises SpecInvalid when it takes a
    restart.
    """
    return _between(old, new, endpoints, bases)[1]


def _between(
    old: MachineSpec,
    new: MachineSpec,
    endpoints: Mapping[str, Cable] | None = None,
    bases: Mapping[str, Sequence[BaseImage]] | None = None,
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    before, after = parts_of(old), parts_of(new, endpoints, bases)
    going, coming = parts_between(before, after)
    faults = [*refused_changes(before, after), *_fixed((*going, *coming))]
    if faults:
        raise SpecInvalid(faults, f"machine {new.name!r}")
    return going, coming


def _fixed(parts: Sequence[Part]) -> Iterator[Fault]:
    for part in parts:
        if (part.arguments or {}).get("driver") == DIMM_DRIVER:
            continue  # it is in a slot, which is on no bus
        bus = str((part.arguments or {}).get("bus", "pcie.0"))
        if part.kind == "device" and bus.startswith(_FIXED_BUSES):
            message = f"it sits on {bus!r}, which takes and gives no device while the machine runs"
            yield Fault(part.id, message, "restart the machine with the changed spec")
