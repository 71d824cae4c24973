"""The ports of a host that lead into a guest, on their way to its destination with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from qmpkit.machine.machine import Machine
from qmpkit.operations.forwards import forwarded_ports
from qmpkit.operations.migration.end import End
from qmpkit.operations.ports import change_forwards, ports_again
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Forward, UserNic

__all__ = ["PortsAlong", "has_forwards"]


def has_forwards(spec: MachineSpec) -> bool:
    """Whether ports of this host lead into its guest."""
    return any(isinstance(nic, UserNic) and nic.forwards for nic in spec.nics)


class PortsAlong:
    """Those of one migration; *lost* is told of one that somebody else took meanwhile."""

    def __init__(self, source: Machine, lost: Callable[[str], object]) -> None:
        self._source = source
        self._lost = lost
        self._ports: dict[str, list[Forward]] = {}
        self._are_off = False

    async def look(self) -> None:
        """Find the numbers that they turned out to have."""
        if not has_forwards(self._source.spec):
            return
        for port in await forwarded_ports(self._source):
            proto: Literal["tcp", "udp"] = "udp" if port.proto == "udp" else "tcp"
            forward = Forward(port.port, port.guest_port, proto, port.address, port.guest_address)
            self._ports.setdefault(port.nic, []).append(forward)

    async def move(self, end: End) -> None:
        """They lead to *end*: the guest stands still already."""
        self._are_off = bool(self._ports)
        for nic in self._ports:
            await change_forwards(self._source, self._source.name, nic, [])
        await end.open_ports(self._ports)

    async def go_back(self) -> None:
        """They lead to the source again."""
        if self._are_off:
            await ports_again(self._source, self._source.name, self._ports, self._lost)
