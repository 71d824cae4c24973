"""Bridges of the host: a tap device for every NIC, and DHCP where a range is given away."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from qmpkit.errors import HostLacks
from qmpkit.networks.devices import (
    Device,
    all_devices,
    check_bridge,
    make_bridge,
    make_tap,
    may_make_devices,
    owned_devices,
    put_on_bridge,
    remove_devices,
)
from qmpkit.networks.helpers import Command, Helpers, Members, Prepare
from qmpkit.networks.lent import lent_tap
from qmpkit.process.places import Places
from qmpkit.process.roots import hash_of
from qmpkit.spec.farm import Flaw, Joined
from qmpkit.spec.farm_networks import Bridge, subnet_of
from qmpkit.spec.names import tap_name
from qmpkit.spec.network import Nic, TapNic

__all__ = ["Bridges"]

log = logging.getLogger("qmpkit.networks")

_ALIAS_LIMIT = 255
_LEASE = "1h"
_DHCP = 67


class Bridges:
    """Those that machines of one supervisor are on."""

    def __init__(self, places: Places, helpers: Helpers) -> None:
        self._helpers = helpers
        self._leases = places.state / "leases"  # a file for every network, dnsmasq's if it has one
        state = os.fsdecode(places.state)
        fits = len(os.fsencode(state)) + len("qmpkit ") <= _ALIAS_LIMIT
        self._owner = f"qmpkit {state if fits else hash_of(state)}"
        self._served: dict[str, Bridge | None] = {}  # as its DHCP server knows it
        self._taps: set[tuple[str, str]] = set()  # each with the bridge before it

    def helper(self, join: Joined) -> tuple[str, Prepare] | None:
        """Its DHCP server, if it has one."""
        network = _bridge(join)
        if network.dhcp is None:
            return None
        self._served[join.name] = network
        return _server(join.name), partial(_prepared, network, self._leases / join.name)

    async def sweep(self, members: Members) -> None:
        """Remove our devices that no member on record needs."""
        self._taps |= {(_bridge(join).bridge, self._tap(member, join)) for member, join in members}
        needed = {device for pair in self._taps for device in pair}
        if not self._leases.exists():  # netlink's library is not loaded for nothing
            return
        found = await trio.to_thread.run_sync(_owned_if_possible, self._owner)
        try:
            await self._remove(sorted(set(found) - needed))
        except HostLacks as error:  # no reason not to supervise machines
            log.warning("devices that nobody needs are left: %s", error)

    async def make(self, member: str, join: Joined) -> None:
        """Have the bridge, the member's tap on it, and DHCP; raises HostLacks."""
        network, tap = _bridge(join), self._tap(member, join)
        self._taps.add((network.bridge, tap))
        others = [other for bridge, other in self._taps if bridge == network.bridge]
        leases = self._leases / join.name
        if await trio.to_thread.run_sync(_made, network, tap, others, leases, self._owner):
            self._served[join.name] = None  # a server hears no later device of the same name
        if self._served.get(join.name, network) != network:
            await self._helpers.end(_server(join.name))
        if (helper := self.helper(join)) is not None:
            await self._helpers.run(*helper)

    async def look(self, members: Members) -> list[tuple[str, Flaw]]:
        """What is not as it was made, of which a restart alone can help a tap that is gone."""
        try:
            devices = await trio.to_thread.run_sync(all_devices)
        except HostLacks as error:  # as whoever makes them is going to find
            return [(member, Flaw(str(error), mendable=True)) for member, _ in members]
        return [
            (member, flaw)
            for member, join in members
            for flaw in _flaws(join, self._tap(member, join), devices, self._owner)
        ]

    async def plugged(self, nic: Nic, member: str, join: Joined) -> tuple[Nic, int | None]:
        """The NIC with its tap: by name, or opened by QEMU's helper when we may not make one."""
        assert isinstance(nic, TapNic), "the farm gives a bridge's NIC this"
        if may_make_devices():
            return attrs.evolve(nic, ifname=self._tap(member, join)), None
        return nic, await lent_tap(_bridge(join).bridge)

    async def unplug(self, member: str, join: Joined) -> None:
        """Remove the member's tap."""
        tap = self._tap(member, join)
        self._taps.discard((_bridge(join).bridge, tap))
        await self._remove([tap])

    async def remove(self, join: Joined) -> None:
        """End its DHCP server, and remove the bridge if it was made."""
        await self._helpers.end(_server(join.name))
        self._served.pop(join.name, None)
        await self._remove([_bridge(join).bridge])  # if it is ours
        await trio.to_thread.run_sync(_forgotten, self._leases / join.name)

    def _tap(self, member: str, join: Joined) -> str:
        return tap_name(self._owner, member, join.name)

    async def _remove(self, devices: list[str]) -> None:
        if devices and self._leases.exists():  # else none was ever made
            await trio.to_thread.run_sync(remove_devices, devices, self._owner)


def _bridge(join: Joined) -> Bridge:
    assert isinstance(join.network, Bridge), "it is asked of nothing else"
    return join.network


def _server(network: str) -> str:
    return f"the DHCP server of network {network!r}"


def _made(network: Bridge, tap: str, others: list[str], leases: Path, owner: str) -> bool:
    """Have the bridge, and the tap on it; True when it was made, with the *others* on it again."""
    leases.parent.mkdir(mode=0o700, exist_ok=True)
    leases.touch(0o600)  # on record, before there is anything
    if not network.make:
        check_bridge(network.bridge)
        if may_make_devices():
            make_tap(tap, network.bridge, owner)
        return False
    is_new = make_bridge(network.bridge, owner, _address(network))
    try:
        if is_new:
            put_on_bridge(others, network.bridge, owner)
        make_tap(tap, network.bridge, owner)
    except BaseException:
        if is_new:  # else it would be found there the next time, and taken for whole
            remove_devices([network.bridge], owner)
        raise
    return is_new


def _address(network: Bridge) -> str | None:
    subnet = subnet_of(network)
    return f"{network.address}/{subnet.prefixlen}" if network.address and subnet else None


def _flaws(join: Joined, tap: str, devices: Mapping[str, Device], owner: str) -> Iterator[Flaw]:
    """Of a machine that runs.  A tap that QEMU has not open any more is another of its name."""
    network = _bridge(join)
    of = f"of network {join.name!r}"
    bridge = devices.get(network.bridge)
    if (why := _why_not(network, bridge, owner)) is not None:
        yield Flaw(f"the bridge {network.bridge!r} {of}: {why}", mendable=True)
    if not may_make_devices():  # then a tap is somebody else's, by a name that nobody told us
        return
    device = devices.get(tap)
    if device is None or device.owner != owner or not device.has_carrier:
        yield Flaw(f"the tap device of {join.nic} {of}: removed ({tap})", mendable=False)
    elif bridge is not None and device.bridge != network.bridge:
        what = f"the tap device of {join.nic} {of}: not on {network.bridge!r} ({tap})"
        yield Flaw(what, mendable=True)
    elif not device.is_up:
        yield Flaw(f"the tap device of {join.nic} {of}: down ({tap})", mendable=True)


def _why_not(network: Bridge, device: Device | None, owner: str) -> str | None:
    """Why a bridge is not as it was made, or as the host had it; None when it is."""
    if device is None:
        return "removed"
    if not network.make:
        return None
    if device.owner != owner:
        return "another device has its name"
    if (address := _address(network)) is not None and address not in device.addresses:
        return f"without its address {address}"
    return None if device.is_up else "down"


def _owned_if_possible(owner: str) -> list[str]:
    """Nothing where netlink cannot be had: then nothing was made either."""
    try:
        return owned_devices(owner)
    except HostLacks:
        return []


def _prepared(network: Bridge, leases: Path, stack: ExitStack) -> Command:
    """dnsmasq, for DHCP alone."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    if (program := shutil.which("dnsmasq", path=path)) is None:
        what = f"a DHCP range on {network.bridge!r} needs dnsmasq, which is not installed"
        raise HostLacks(what, "sudo apt install dnsmasq-base")
    _refuse_another_server(network.bridge)
    subnet = subnet_of(network)
    assert network.dhcp is not None and subnet is not None, "farm_networks sees to that"
    first, _, last = (part.strip() for part in network.dhcp.partition("-"))
    return Command(
        [
            program,
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--log-facility=-",
            "--pid-file=",
            "--port=0",  # no DNS
            f"--interface={network.bridge}",
            "--except-interface=lo",
            "--bind-interfaces",
            f"--dhcp-range={first},{last},{subnet.netmask},{_LEASE}",
            f"--dhcp-leasefile={leases}",
            "--dhcp-authoritative",
            "--no-ping",  # nobody has an address of the range by other means: guests boot faster
            "--quiet-dhcp",
        ]
    )


def _refuse_another_server(bridge: str) -> None:
    """Bind what dnsmasq is about to: it has been started already when it ends of that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # other dnsmasqs are none
            probe.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            probe.bind(("", _DHCP))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                what = f"no DHCP on {bridge!r}: UDP port {_DHCP} is another program's"
                cure = f"`sudo ss -lunp sport = {_DHCP}` names it: end it, or leave out dhcp"
                raise HostLacks(what, cure) from error


def _forgotten(leases: Path) -> None:
    leases.unlink(missing_ok=True)
    with suppress(OSError):  # there are others
        leases.parent.rmdir()
