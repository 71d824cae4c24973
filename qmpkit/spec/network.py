"""NICs: the guest's device and, apart from it, the host's side of the cable."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.addresses import Place
from qmpkit.spec.chardev import Endpoint, FdEndpoint, NamedEndpoint
from qmpkit.spec.given import items_of
from qmpkit.spec.names import id_problem, ifname_problem, mac_of, netdev_id
from qmpkit.spec.options import Json
from qmpkit.spec.sizes import KIB, Size, format_size, to_bytes

__all__ = [
    "NIC_KINDS",
    "Cable",
    "DgramNic",
    "Forward",
    "Nic",
    "NicModel",
    "StreamNic",
    "TapNic",
    "UserNic",
    "inet_address",
    "link_needed",
    "netdev_of",
    "nic_device_of",
    "nic_faults",
    "to_forward",
    "to_nics",
    "with_rates",
]

_LEAST_RATE = KIB
Cable = Endpoint | NamedEndpoint
NicModel = Literal["virtio-net", "e1000e"]
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_INET = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):(\d{1,5})", re.ASCII)


@attrs.frozen
class Forward:
    """Connections to `address:host` on the host go to `guest` in the guest.

    `host` 0 lets the kernel choose. `address` "0.0.0.0" opens the port to the network.
    """

    host: int
    guest: int
    proto: Literal["tcp", "udp"] = "tcp"
    address: str = "127.0.0.1"
    guest_address: str | None = None


def to_forward(text: str) -> Forward:
    """ "2222:22": the host's port and the guest's; ValueError for anything else."""
    host, _, guest = text.partition(":")
    if not (host.isdecimal() and guest.isdecimal()):
        raise ValueError(f"{text!r} is not HOSTPORT:GUESTPORT")
    return Forward(int(host), int(guest))


def _forwards(value: Iterable[Forward | str]) -> tuple[Forward, ...]:
    hint = 'Forward(2222, 22) or "2222:22"'
    forwards, faults = [], []
    for number, item in enumerate(items_of(value, "forwards", hint, (Forward, str))):
        try:
            forwards.append(to_forward(item) if isinstance(item, str) else item)
        except ValueError as error:
            faults.append(Fault(f"forwards[{number}]", str(error), hint))
    if faults:
        raise SpecInvalid(faults)
    return tuple(forwards)


@attrs.frozen(kw_only=True)
class _NicBase:
    """What every NIC has: `mac` defaults to one made from machine name and `id`.

    `boot`: place in the boot order; only then is the PXE ROM loaded. `bus`: the
    root port to sit in. `link`: whether the cable is in. `id` is filled in from the place
    in the list (`nic0`).
    """

    model: NicModel = "virtio-net"
    mac: str | None = None
    boot: int | None = None
    id: str = ""
    bus: str | None = None
    link: bool = True


@attrs.frozen(kw_only=True)
class UserNic(_NicBase):
    """QEMU's own NAT: needs no rights; the guest gets 10.0.2.15 by DHCP from 10.0.2.2.

    `net`: another network; `restrict`: no way out, only `forwards`.
    """

    forwards: tuple[Forward, ...] = attrs.field(default=(), converter=_forwards)
    net: str | None = None
    restrict: bool = False


def _rate(value: str | int | None) -> Size | None:
    return None if value is None else to_bytes(value, "nics")


@attrs.frozen(kw_only=True)
class TapNic(_NicBase):
    """A tap device of the host that already exists; `vhost` needs /dev/vhost-net.

    Without `ifname`, whoever starts the machine hands over the opened device as the
    endpoint named after the NIC: that is how a farm's bridges do it.
    `max_received`, `max_sent`: bytes ("10MiB") a second that the guest may receive and send,
    bounded on the device (CAP_NET_ADMIN).
    """

    ifname: str | None = None
    vhost: bool = False
    queues: int = 1
    max_received: Size | None = attrs.field(default=None, converter=_rate)
    max_sent: Size | None = attrs.field(default=None, converter=_rate)


@attrs.frozen(kw_only=True)
class StreamNic(_NicBase):
    """A cable over a stream socket (QEMU 7.2): `address` "unix:/path" or "host:port".

    With `server` QEMU listens. Without `address`, whoever starts the machine hands
    over a connected socket as the endpoint named after the NIC.
    """

    address: str | None = None
    server: bool = False


@attrs.frozen(kw_only=True)
class DgramNic(_NicBase):
    """A cable over datagrams (QEMU 7.2) between `local` and `remote`.

    Both "unix:/path" or both "host:port"; a multicast `remote` alone joins a group.
    Without either, the socket is handed over as for `StreamNic`.
    """

    local: str | None = None
    remote: str | None = None


Nic = UserNic | TapNic | StreamNic | DgramNic
NIC_KINDS: dict[str, type[UserNic] | type[TapNic] | type[StreamNic] | type[DgramNic]] = {
    "user": UserNic,
    "tap": TapNic,
    "stream": StreamNic,
    "dgram": DgramNic,
}
_N = TypeVar("_N", UserNic, TapNic, StreamNic, DgramNic)


def to_nics(value: Iterable[Nic]) -> tuple[Nic, ...]:
    """Fill in missing ids: `nic0`, `nic1` … by place in the list, skipping those in use."""
    nics = items_of(value, "nics", "UserNic()", tuple(NIC_KINDS.values()))
    used = {nic.id for nic in nics}
    named: list[Nic] = []
    for number, nic in enumerate(nics):
        name = nic.id
        while not name or (name != nic.id and name in used):
            name = f"nic{number}"
            number += 1
        used.add(name)
        named.append(nic if name == nic.id else attrs.evolve(nic, id=name))
    return tuple(named)


def with_rates(nics: Iterable[Nic], others: Iterable[Nic]) -> tuple[Nic, ...]:
    """*nics*, bounded as those of *others* are that have the same id."""
    known = {nic.id: nic for nic in others if isinstance(nic, TapNic)}
    return tuple(_bounded(nic, known.get(nic.id)) for nic in nics)


def _bounded(nic: Nic, other: TapNic | None) -> Nic:
    if other is None or not isinstance(nic, TapNic):
        return nic
    return attrs.evolve(nic, max_received=other.max_received, max_sent=other.max_sent)


def link_needed(nic: Nic) -> bool:
    """Whether the cable's descriptor must be given to `render` as the endpoint `nic.id`."""
    if isinstance(nic, TapNic):
        return nic.ifname is None
    if isinstance(nic, StreamNic):
        return nic.address is None
    return isinstance(nic, DgramNic) and nic.local is None and nic.remote is None


def netdev_of(nic: Nic, endpoint: Cable | None = None) -> Json:
    """The argument of `-netdev` (and `netdev_add`)."""
    match nic:
        case UserNic():
            backend = _user(nic)
        case TapNic():
            backend = _tap(nic, endpoint)
        case StreamNic():
            backend = _stream(nic, endpoint)
        case DgramNic():
            backend = _dgram(nic, endpoint)
    return {"type": backend.pop("type"), "id": netdev_id(nic.id), **backend}


def _tap(nic: TapNic, endpoint: Cable | None) -> dict[str, object]:
    backend: dict[str, object] = {"type": "tap"}
    if nic.ifname is None:
        backend["fd"] = _handed_over(endpoint)
    else:
        backend |= {"ifname": nic.ifname, "script": "no", "downscript": "no"}
    if nic.vhost:
        backend["vhost"] = True
    if nic.queues > 1:
        backend["queues"] = nic.queues
    return backend


def _user(nic: UserNic) -> dict[str, object]:
    backend: dict[str, object] = {"type": "user"}
    if nic.net is not None:
        backend["net"] = nic.net
    if nic.restrict:
        backend["restrict"] = True
    if nic.forwards:
        backend["hostfwd"] = [{"str": _hostfwd(forward)} for forward in nic.forwards]
    return backend


def _hostfwd(forward: Forward) -> str:
    guest = forward.guest_address or ""
    return f"{forward.proto}:{forward.address}:{forward.host}-{guest}:{forward.guest}"


def _stream(nic: StreamNic, endpoint: Cable | None) -> dict[str, object]:
    if nic.address is None and isinstance(endpoint, NamedEndpoint):
        # The same cable, older: `stream` looks for the name when it has no monitor to ask.
        return {"type": "socket", "fd": endpoint.name}
    return {"type": "stream", "server": nic.server, "addr": _end(nic.address, endpoint)}


def _dgram(nic: DgramNic, endpoint: Cable | None) -> dict[str, object]:
    if link_needed(nic):
        return {"type": "dgram", "local": _end(None, endpoint)}
    backend: dict[str, object] = {"type": "dgram"}
    for side, address in (("local", nic.local), ("remote", nic.remote)):
        if address is not None:
            backend[side] = _end(address, None)
    return backend


def _end(address: str | None, endpoint: Cable | None) -> Json:
    """A SocketAddress."""
    if address is None:
        return {"type": "fd", "str": _handed_over(endpoint)}
    if address.startswith("unix:"):
        return {"type": "unix", "path": address.removeprefix("unix:")}
    host, _, port = address.rpartition(":")
    return {"type": "inet", "host": host.strip("[]"), "port": port}


def _handed_over(cable: Cable | None) -> str:
    match cable:
        case FdEndpoint():
            return str(cable.fd)
        case NamedEndpoint():
            return cable.name
    raise ValueError("this NIC's cable has to be handed over as a descriptor")


def nic_device_of(nic: Nic, place: Place, machine: str) -> Json:
    """The argument of `-device` (and `device_add`)."""
    device: dict[str, object] = {
        "driver": "e1000e" if nic.model == "e1000e" else place.virtio("net"),
        "id": nic.id,
        **place.properties(),
        "netdev": netdev_id(nic.id),
        "mac": nic.mac or mac_of(machine, nic.id),
    }
    if isinstance(nic, TapNic) and nic.queues > 1:
        device |= {"mq": True}
        if place.addr is not None:
            device["vectors"] = 2 * nic.queues + 2
    if nic.boot is not None:
        device["bootindex"] = nic.boot
    elif place.addr is not None:
        # The PXE ROM is in a package of its own, and QEMU does not start without it.
        device["romfile"] = ""
    return device


def nic_faults(nic: Nic, where: str) -> Iterator[Fault]:
    """Everything that contradicts itself in one NIC."""
    if problem := id_problem(nic.id):
        yield Fault(f"{where}.id", problem)
    if nic.mac is not None:
        yield from _mac_faults(nic.mac, f"{where}.mac")
    if nic.boot is not None and nic.boot < 0:
        yield Fault(f"{where}.boot", f"counts from 0, not from {nic.boot}")
    match nic:
        case UserNic():
            yield from _user_faults(nic, where)
        case TapNic():
            yield from _tap_faults(nic, where)
        case StreamNic():
            yield from _address_faults(nic.address, f"{where}.address")
        case DgramNic():
            yield from _address_faults(nic.local, f"{where}.local")
            yield from _address_faults(nic.remote, f"{where}.remote")
            if nic.local is not None and nic.remote is None:
                yield Fault(f"{where}.remote", "is missing: datagrams need somewhere to go")


def _mac_faults(mac: str, where: str) -> Iterator[Fault]:
    if not _MAC.fullmatch(mac):
        yield Fault(where, f"{mac!r} is not a MAC address", "52:54:00:12:34:56")
    elif int(mac[:2], 16) & 1:
        yield Fault(where, f"{mac!r} is a group's address, not one NIC's")


def _user_faults(nic: UserNic, where: str) -> Iterator[Fault]:
    if nic.net is not None:
        try:
            ipaddress.IPv4Network(nic.net)
        except ValueError:
            yield Fault(f"{where}.net", f"{nic.net!r} is not an IPv4 network", "10.0.2.0/24")
    for number, forward in enumerate(nic.forwards):
        at = f"{where}.forwards[{number}]"
        if not 0 <= forward.host <= 65535:
            yield Fault(f"{at}.host", f"{forward.host} is not a port")
        if not 1 <= forward.guest <= 65535:
            yield Fault(f"{at}.guest", f"{forward.guest} is not a port")
        for name in ("address", "guest_address"):
            address: str | None = getattr(forward, name)
            if address is not None and not _is_ipv4(address):
                yield Fault(f"{at}.{name}", f"{address!r} is not an IPv4 address")


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _tap_faults(nic: TapNic, where: str) -> Iterator[Fault]:
    if nic.ifname is None:
        if nic.queues > 1:
            yield Fault(f"{where}.queues", "a device that is handed over has one queue")
    elif problem := ifname_problem(nic.ifname):
        yield Fault(f"{where}.ifname", problem)
    for name in ("max_received", "max_sent"):
        rate: int | None = getattr(nic, name)
        if rate is not None and rate < _LEAST_RATE:
            message = f"{format_size(rate)} a second is less than {format_size(_LEAST_RATE)}"
            yield Fault(f"{where}.{name}", message)
    if not 1 <= nic.queues <= 256:
        yield Fault(f"{where}.queues", f"must be from 1 to 256, not {nic.queues}")
    if nic.queues > 1 and nic.model != "virtio-net":
        yield Fault(f"{where}.queues", f"{nic.model} has one queue")


def _address_faults(address: str | None, where: str) -> Iterator[Fault]:
    if address is None:
        return
    hint = '"unix:/path" or "host:port"'
    if address.startswith("unix:"):
        if len(address.removeprefix("unix:").encode()) not in range(1, 108):
            yield Fault(where, "a socket's path has 1 to 107 bytes", hint)
    elif inet_address(address) is None:
        yield Fault(where, f"{address!r} is not an address", hint)


def inet_address(text: str) -> tuple[str, int] | None:
    """The host and the port of "host:port"; None for anything else."""
    found = _INET.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        return None
    return found[1].strip("[]"), int(found[2])
