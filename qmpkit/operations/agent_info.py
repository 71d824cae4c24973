"""What a guest tells about itself through its agent."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

__all__ = ["GuestInterface", "OsInfo", "interfaces_from", "os_info_from"]


@attrs.frozen
class OsInfo:
    """The guest's operating system; "" for what it does not tell.

    The first six are os-release(5)'s fields, the others uname(2)'s.
    """

    id: str = ""
    name: str = ""
    pretty_name: str = ""
    version: str = ""
    version_id: str = ""
    variant: str = ""
    kernel_release: str = ""
    kernel_version: str = ""
    machine: str = ""


@attrs.frozen
class GuestInterface:
    """One network interface of the guest.

    `mac` is "" for one without (a tunnel).  Each address comes with its prefix length:
    `str(address.ip)`, `address.network`.
    """

    name: str
    mac: str
    addresses: tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]


def os_info_from(reply: Mapping[str, Any]) -> OsInfo:
    """Read the reply to `guest-get-osinfo`; every field of it is optional."""
    fields = [field.name for field in attrs.fields(OsInfo)]
    return OsInfo(**{name: str(reply.get(name.replace("_", "-"), "")) for name in fields})


def interfaces_from(reply: Sequence[Mapping[str, Any]]) -> tuple[GuestInterface, ...]:
    """Read the reply to `guest-network-get-interfaces`."""
    return tuple(
        GuestInterface(
            name=str(entry["name"]),
            mac=str(entry.get("hardware-address", "")),
            addresses=tuple(
                ipaddress.ip_interface(f"{address['ip-address']}/{address['prefix']}")
                for address in entry.get("ip-addresses", ())
            ),
        )
        for entry in reply
    )
