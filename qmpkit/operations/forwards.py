"""Which ports of this host lead into the guest: QEMU chooses those that were given as 0."""

from __future__ import annotations

import re

import attrs

from qmpkit.operations._protocols import Monitor

__all__ = ["Connection", "Forwarded", "connections", "forwarded_ports", "read_connections"]
__all__ += ["read_usernet"]

# One line of `info usernet`: TCP[HOST_FORWARD]  11  127.0.0.1 36207  10.0.2.15 22  0 0
_NETDEV = re.compile(r"\S.*\((?P<netdev>[^()]+)\):\s*")
_FORWARD = re.compile(
    r"\s+(?P<proto>TCP|UDP)\[HOST_FORWARD\]\s+\d+"
    r"\s+(?P<address>\S+)\s+(?P<port>\d+)"
    r"\s+(?P<guest_address>\S+)\s+(?P<guest_port>\d+)\b.*",
    re.ASCII,
)
_CONNECTION = re.compile(
    r"\s+TCP\[(?P<state>[A-Z0-9_]+)\]\s+(?P<fd>\d+)\s+\S+\s+\d+"
    r"\s+(?P<guest_address>\S+)\s+(?P<guest_port>\d+)\b.*",
    re.ASCII,
)
_OWN = "qk-"


@attrs.frozen
class Forwarded:
    """A port of the host that leads into the guest, as it is now.

    `nic`: the NIC's id; `proto`: "tcp" or "udp"; `address`, `port`: on the host,
    "0.0.0.0" being every address; `guest_address`, `guest_port`: where it leads.
    """

    nic: str
    proto: str
    address: str
    port: int
    guest_address: str
    guest_port: int


@attrs.frozen
class Connection:
    """A TCP connection of a user-mode NIC, by QEMU's descriptor `fd`.

    `state` is TCP's: SYN_SENT as long as the guest has not answered.
    """

    fd: int
    state: str
    guest_address: str
    guest_port: int


async def connections(monitor: Monitor) -> tuple[Connection, ...]:
    """The TCP connections of the machine's user-mode NICs, those into the guest and out of it."""
    return read_connections(await _usernet(monitor))


def read_connections(text: str) -> tuple[Connection, ...]:
    """What `info usernet` says of TCP connections."""
    rows = filter(None, map(_CONNECTION.fullmatch, text.splitlines()))
    return tuple(
        Connection(int(row["fd"]), row["state"], row["guest_address"], int(row["guest_port"]))
        for row in rows
        if row["state"] != "HOST_FORWARD"
    )


async def _usernet(monitor: Monitor) -> str:
    said: str = await monitor.execute("human-monitor-command", {"command-line": "info usernet"})
    return said


async def forwarded_ports(monitor: Monitor) -> tuple[Forwarded, ...]:
    """The forwarded ports of the machine's user-mode NICs, also while it is paused.

    QEMU tells them only to people (`info usernet`), in the same words from 7.2 to 10.0.
    """
    return read_usernet(await _usernet(monitor))


def read_usernet(text: str) -> tuple[Forwarded, ...]:
    """What `info usernet` says of forwarded ports; lines of any other kind are passed over."""
    found: list[Forwarded] = []
    nic = ""
    for line in text.splitlines():
        if heading := _NETDEV.fullmatch(line):
            nic = heading["netdev"].removeprefix(_OWN)
        elif row := _FORWARD.fullmatch(line):
            found.append(
                Forwarded(
                    nic=nic,
                    proto=row["proto"].lower(),
                    address="0.0.0.0" if row["address"] == "*" else row["address"],
                    port=int(row["port"]),
                    guest_address=row["guest_address"],
                    guest_port=int(row["guest_port"]),
                )
            )
    return tuple(found)
