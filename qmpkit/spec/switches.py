"""PCI Express switches: ports for hotplug beyond those that pcie.0 has room for.

A switch sits in a root port of its own, behind all others, so that the bus numbers of those
(`enp1s0`) are the same with it.  Buses are 256 in all, of which each port takes one.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from qmpkit.spec.options import Json

__all__ = ["SWITCH_PORTS", "SwitchPort", "switch_devices"]

_SLOT = 0x1E  # of pcie.0
_CHASSIS = 113  # after those of the root ports
_PORTS = 32  # of a switch
_SWITCHES = 4

SWITCH_PORTS = _PORTS * _SWITCHES
"""As many there can be."""


@attrs.frozen
class SwitchPort:
    """A downstream port, which holds one device and can be plugged into while running.

    `number` counts those of all switches.
    """

    name: str
    number: int


def switch_devices(port: SwitchPort) -> Iterator[Json]:
    """The `-device` of a port, after those of its switch if it is its first."""
    switch, number = divmod(port.number, _PORTS)
    upstream = f"switch{switch}"
    if number == 0:
        root: dict[str, object] = {
            "driver": "pcie-root-port",
            "id": f"{upstream}-root",
            "bus": "pcie.0",
            "addr": f"{_SLOT:#x}.{switch:x}",
            "chassis": _CHASSIS + switch,
            "port": _CHASSIS + switch,
        }
        yield root if switch else {**root, "multifunction": True}
        yield {"driver": "x3130-upstream", "id": upstream, "bus": f"{upstream}-root", "addr": "0x0"}
    yield {
        "driver": "xio3130-downstream",
        "id": port.name,
        "bus": upstream,
        "addr": f"{number:#x}",
        "chassis": _CHASSIS + _SWITCHES + switch,
        "slot": number,
        "port": number,
    }
