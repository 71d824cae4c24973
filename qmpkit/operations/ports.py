"""Changing which ports of this host lead into a guest, while it runs.

QEMU has no QMP command for it: `hostfwd_add` and `hostfwd_remove` of the human monitor
answer in words, so what has come of them is looked up afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from qmpkit.errors import HostLacks
from qmpkit.operations._protocols import Monitor
from qmpkit.operations.forwards import Forwarded, forwarded_ports
from qmpkit.spec.names import netdev_id
from qmpkit.spec.network import Forward, Nic, UserNic

__all__ = ["change_forwards", "forwards_of", "ports_again", "unmatched"]


async def change_forwards(
    monitor: Monitor, machine: str, nic: str, wanted: Sequence[Forward]
) -> None:
    """Have the user-mode NIC *nic* of *machine* forward what is *wanted* and nothing else.

    What is there already stays open.  Raises HostLacks when a port cannot be had; then,
    as when it is cancelled, what was changed until then stays: asking again goes on.
    """
    there = [port for port in await forwarded_ports(monitor) if port.nic == nic]
    gone, new = unmatched(there, wanted)
    for port in gone:
        await _say(monitor, f"hostfwd_remove {netdev_id(nic)} {_end(port)}")
    failures = []
    for forward in new:
        guest = forward.guest_address or ""
        host = f"{forward.proto}:{forward.address}:{forward.host}"
        said = await _say(monitor, f"hostfwd_add {netdev_id(nic)} {host}-{guest}:{forward.guest}")
        if said:
            failures.append(f"{host}: {said}")
    if failures:
        what = f"machine {machine!r} cannot have its ports: {'; '.join(failures)}"
        raise HostLacks(what, "is the port taken? 0 lets the kernel choose one")


def forwards_of(nics: Iterable[Nic]) -> dict[str, Sequence[Forward]]:
    """The ports that are to lead into a machine, by NIC.  Pure."""
    return {nic.id: nic.forwards for nic in nics if isinstance(nic, UserNic) and nic.forwards}


async def ports_again(
    monitor: Monitor,
    machine: str,
    ports: Mapping[str, Sequence[Forward]],
    lost: Callable[[str], object],
) -> None:
    """Open the *ports* of each NIC again, as `change_forwards` does.

    *lost* is told why one cannot be had: somebody may have taken it while it was closed.  The
    others are opened all the same.
    """
    for nic, forwards in ports.items():
        try:
            await change_forwards(monitor, machine, nic, forwards)
        except HostLacks as lacks:
            lost(str(lacks))


def unmatched(
    there: Iterable[Forwarded], wanted: Iterable[Forward]
) -> tuple[list[Forwarded], list[Forward]]:
    """Of the ports that are there those that are not wanted, and of the wanted the missing.

    Pure.  Each port serves one wish; a wish for any port (0) takes what the others leave.
    """
    left = list(there)
    new = []
    for forward in sorted(wanted, key=lambda forward: forward.host == 0):
        match = next((port for port in left if _serves(port, forward)), None)
        if match is None:
            new.append(forward)
        else:
            left.remove(match)
    return left, new


def _serves(port: Forwarded, forward: Forward) -> bool:
    return (
        (port.proto, port.address, port.guest_port)
        == (forward.proto, forward.address, forward.guest)
        and forward.host in (0, port.port)
        and forward.guest_address in (None, port.guest_address)
    )


def _end(port: Forwarded) -> str:
    return f"{port.proto}:{port.address}:{port.port}"


async def _say(monitor: Monitor, line: str) -> str:
    said: str = await monitor.execute("human-monitor-command", {"command-line": line})
    return said.strip()
