"""Whether the guest has file systems on a disk that is to go, as its agent tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.disks import disk_of
from qmpkit.operations.hotplug.errors import UnplugRefused
from qmpkit.spec.block import Disk
from qmpkit.spec.units import Unit, units_of

__all__ = ["Asked", "addresses_of", "mounts_on", "refuse_mounted"]

Address = tuple[int, int, int]
"""A PCI function as the guest numbers it: bus, slot, function."""


class Asked(Protocol):
    """The guest's agent."""

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, /) -> Any:
        """One command of the agent."""


async def refuse_mounted(machine: Changeable, agent: Asked, disk_id: str) -> None:
    """Raise UnplugRefused when the guest has mounted something of the disk.

    (`guest-get-fsinfo`, `query-pci`.)  AgentSilent when no agent answers.
    """
    disk = disk_of(machine, disk_id)
    found = await agent.execute("guest-get-fsinfo")
    pci = addresses_of(await machine.execute("query-pci"))
    if mounts := list(mounts_on(disk, units_of(machine.spec).get(disk.id), found, pci)):
        why = f"it is mounted there at {', '.join(mounts)}"
        raise UnplugRefused(machine.name, disk_id, why)


def addresses_of(buses: Iterable[Mapping[str, Any]]) -> dict[str, Address]:
    """Where each device with an id sits, of the reply to `query-pci`.  Pure."""
    return dict(_addresses(device for bus in buses for device in bus["devices"]))


def _addresses(devices: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Address]]:
    for device in devices:
        yield device["qdev_id"], (device["bus"], device["slot"], device["function"])
        yield from _addresses(device.get("pci_bridge", {}).get("devices", ()))


def mounts_on(
    disk: Disk,
    unit: Unit | None,
    systems: Iterable[Mapping[str, Any]],
    pci: Mapping[str, Address],
) -> Iterator[str]:
    """Where the guest has mounted file systems of *disk*.  Pure.

    *unit*: its place on a controller.  On a USB controller the agent does not tell one disk
    from another: there it is those of all of them.
    """
    address = pci.get(disk.id if unit is None else unit.controller)
    target = unit.number if unit is not None and disk.interface != "usb" else None
    for system in systems:
        if any(_is_on(part, address, target) for part in system.get("disk", ())):
            yield system["mountpoint"]


def _is_on(part: Mapping[str, Any], address: Address | None, target: int | None) -> bool:
    where = part["pci-controller"]
    at = (where["bus"], where["slot"], where["function"])
    return at == address and target in (None, part["target"])
