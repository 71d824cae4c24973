"""Bridges and tap devices of the host, over netlink.  Blocking.

What we make carries its owner's name as its alias, and nothing without that is removed.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs

from qmpkit.errors import HostLacks
from qmpkit.host.netlink import opened_netlink
from qmpkit.spec.names import mac_of

__all__ = ["Device", "all_devices", "check_bridge", "make_bridge", "make_tap"]
__all__ += ["may_make_devices", "owned_devices", "put_on_bridge", "remove_devices"]

_CAP_NET_ADMIN = 12
_IFF_UP = 1


@attrs.frozen(kw_only=True)
class Device:
    """One of the host's, as it is at a moment.

    `has_carrier`: of a tap device, that a process has it open.  `bridge`: the one that it is on.
    `addresses`: as in "192.168.5.1/24".
    """

    owner: str | None = None
    is_up: bool = True
    has_carrier: bool = True
    bridge: str | None = None
    addresses: frozenset[str] = frozenset()


def all_devices() -> dict[str, Device]:
    """All of this host's, by name."""
    with _netlink("look at network devices") as route:
        links = {link["index"]: link for link in route.get_links()}
        addresses = defaultdict(set)
        for entry in route.get_addr(family=2):  # AF_INET
            address = f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}"
            addresses[entry["index"]].add(address)
    names = {index: str(link.get_attr("IFLA_IFNAME")) for index, link in links.items()}
    return {
        names[index]: Device(
            owner=_alias(link),
            is_up=bool(link["flags"] & _IFF_UP),
            has_carrier=bool(link.get_attr("IFLA_CARRIER")),
            bridge=names.get(link.get_attr("IFLA_MASTER")),
            addresses=frozenset(addresses[index]),
        )
        for index, link in links.items()
    }


def make_bridge(name: str, owner: str, address: str | None) -> bool:
    """Have a bridge that is *owner*'s and has *address* ("192.168.5.1/24") and no other.

    True when it was not there.  Raises HostLacks, also when the name is a device's that somebody
    else made, or another device is in the address's network; then nothing new is left.
    """
    with _netlink(f"make the bridge {name!r}") as route:
        if address is not None:
            _refuse_shared(route, name, address)
        if is_new := (found := _find(route, name)) is None:
            found = _new(route, name, owner, kind="bridge", address=mac_of(name, "bridge"))
        elif _alias(found) != owner:
            cure = "name another bridge, or use that one with make = false"
            raise HostLacks(_taken(name, found), cure)
        try:
            _set_address(route, found["index"], address)
            route.link("set", index=found["index"], state="up")
        except BaseException:
            if is_new:  # else it would be found there the next time, and taken for whole
                _delete(route, found)
            raise
        return is_new


def check_bridge(name: str) -> None:
    """Raises HostLacks when there is no bridge of that name."""
    with _netlink(f"look at the bridge {name!r}") as route:
        found = _find(route, name)
        if found is None:
            cure = f"sudo ip link add {name} type bridge, or make = true"
            raise HostLacks(f"this host has no bridge {name!r}", cure)
        if _kind(found) != "bridge":
            raise HostLacks(f"the device {name!r} is no bridge", "name one, or another with make")


def make_tap(name: str, bridge: str, owner: str) -> None:
    """Have a tap device that is *owner*'s, on the bridge, for QEMUs of our user."""
    with _netlink(f"make a tap device on the bridge {bridge!r}") as route:
        master = _found(route, bridge)["index"]
        if (found := _find(route, name)) is None:
            found = _new(route, name, owner, kind="tuntap", mode="tap", uid=os.geteuid())
        elif _alias(found) != owner:
            raise HostLacks(_taken(name, found), f"sudo ip link delete {name}")
        route.link("set", index=found["index"], master=master, state="up")


def put_on_bridge(taps: Iterable[str], bridge: str, owner: str) -> None:
    """Have those of the tap devices that are there, and *owner*'s, on the bridge."""
    with _netlink(f"put tap devices on the bridge {bridge!r}") as route:
        master = _found(route, bridge)["index"]
        for tap in taps:
            if (found := _find(route, tap)) is not None and _alias(found) == owner:
                route.link("set", index=found["index"], master=master)


def may_make_devices() -> bool:
    """Whether we have CAP_NET_ADMIN."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(line for line in lines if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_NET_ADMIN & 1)


def owned_devices(owner: str) -> list[str]:
    """The names of those that *owner* made."""
    with _netlink("look at network devices") as route:
        return [link.get_attr("IFLA_IFNAME") for link in route.get_links() if _alias(link) == owner]


def remove_devices(names: list[str], owner: str) -> None:
    """Remove those of them that are there and that *owner* made."""
    with _netlink("remove network devices") as route:
        for name in names:
            for device in (name, _draft(name, owner)):
                found = _find(route, device)
                if found is not None and (_alias(found) == owner or device != name):
                    _delete(route, found)


def _new(route: Any, name: str, owner: str, **how: Any) -> Any:
    """Make a device; it gets its name last, when it says whose it is."""
    draft = _draft(name, owner)
    if (left := _find(route, draft)) is not None:  # by one who was killed
        route.link("del", index=left["index"])
    route.link("add", ifname=draft, **how)
    found = _found(route, draft)
    try:
        route.link("set", index=found["index"], ifalias=owner)
        route.link("set", index=found["index"], ifname=name)
    except BaseException:
        route.link("del", index=found["index"])
        raise
    return found


def _delete(route: Any, found: Any) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        route.link("del", index=found["index"])
    except NetlinkError as error:
        if error.code != errno.ENODEV:  # it has gone by itself
            raise


def _draft(name: str, owner: str) -> str:
    return f"qn{hashlib.sha256(f'{owner}{name}'.encode()).hexdigest()[:12]}"


def _taken(name: str, found: Any) -> str:
    by = "another farm" if (_alias(found) or "").startswith("qmpkit ") else "somebody else"
    return f"the device {name!r} is there and was made by {by}"


def _netlink(purpose: str) -> AbstractContextManager[Any]:
    cure = 'it takes CAP_NET_ADMIN: serve the farm as root, or use kind = "segment"'
    return opened_netlink(purpose, cure)


def _find(route: Any, name: str) -> Any:
    """The device, None when there is none."""
    indexes = route.link_lookup(ifname=name)
    return next(iter(route.get_links(*indexes)), None) if indexes else None


def _found(route: Any, name: str) -> Any:
    if (found := _find(route, name)) is None:
        raise HostLacks(f"the device {name!r} has gone while it was being set up")
    return found


def _alias(link: Any) -> str | None:
    alias: str | None = link.get_attr("IFLA_IFALIAS")
    return alias


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    return None if info is None else str(info.get_attr("IFLA_INFO_KIND"))


def _refuse_shared(route: Any, bridge: str, address: str) -> None:
    """Two devices in one network: the kernel sends all that is for it to the first alone."""
    network = ipaddress.IPv4Interface(address).network
    there = [entry for entry in route.get_addr(family=2) if _network_of(entry) == network]
    names = [_name_of(route, entry["index"]) for entry in there]
    if names and bridge not in names:  # one that has it already is left as it is
        raise HostLacks(
            f"the bridge {bridge!r} cannot have {address}: this host's {names[0]!r} is in "
            f"{network} already",
            "give the network another subnet",
        )


def _network_of(entry: Any) -> ipaddress.IPv4Network:
    text = f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}"
    return ipaddress.IPv4Interface(text).network


def _name_of(route: Any, index: int) -> str:
    return next((str(it.get_attr("IFLA_IFNAME")) for it in route.get_links(index)), f"{index}")


def _set_address(route: Any, index: int, wanted: str | None) -> None:
    address, _, prefix = (wanted or "").partition("/")
    there = False
    for entry in route.get_addr(index=index, family=2):  # AF_INET
        own = entry.get_attr("IFA_ADDRESS"), str(entry["prefixlen"])
        if own == (address, prefix):
            there = True
        else:
            route.addr("del", index=index, address=own[0], prefixlen=entry["prefixlen"])
    if wanted and not there:
        route.addr("add", index=index, address=address, prefixlen=int(prefix))
