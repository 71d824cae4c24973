"""The networks of a farm, and the NIC by which a machine is in one."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.convert import unstructure_any
from qmpkit.spec.farm_faults import Faults, Where, structured
from qmpkit.spec.names import ifname_problem, network_name_problem
from qmpkit.spec.network import DgramNic, Nic, NicModel, StreamNic, TapNic, UserNic
from qmpkit.spec.suggest import suggestion

__all__ = ["Bridge", "Join", "Nat", "Network", "Segment"]
__all__ += [
    "address_problem",
    "fits",
    "gives_away",
    "is_carried",
    "network_of",
    "network_to_table",
    "nic_table",
    "subnet_of",
    "_plainest",
]


@attrs.frozen(kw_only=True)
class Segment:
    """A cable between the guests that join it, with no way out; needs no rights.

    `socket`: what carries the frames, datagrams or a stream.  `subnet`: the IPv4 network
    that fixed addresses are from ("10.1.0.0/24").
    """

    socket: Literal["dgram", "stream"] = "dgram"
    subnet: str | None = None


@attrs.frozen(kw_only=True)
class Nat:
    """QEMU's user mode, each machine by itself: a way out, and in by `ports`; needs no rights.

    `net`: another IPv4 network than 10.0.2.0/24.  `restrict`: no way out.
    """

    net: str | None = None
    restrict: bool = False


@attrs.frozen(kw_only=True)
class Bridge:
    """A bridge of the host, which every machine is on by a tap device.

    `bridge`: the device.  `make`: it is made, and removed with the farm; otherwise it must be
    there.  `subnet`: its IPv4 network; `address`: the host's own in it, for a bridge that is
    made; `dhcp`: a range to give away, "192.168.5.100-192.168.5.199".  `vhost` needs
    /dev/vhost-net.
    """

    bridge: str
    make: bool = False
    subnet: str | None = None
    address: str | None = None
    dhcp: str | None = None
    vhost: bool = False


Network = Segment | Nat | Bridge
_KINDS: dict[str, type[Segment] | type[Nat] | type[Bridge]] = {
    "segment": Segment,
    "nat": Nat,
    "bridge": Bridge,
}


@attrs.frozen(kw_only=True)
class Join:
    """A machine's entry in a network, as its table has it; `mac` and `ip` may hold `{n}`.

    `mac` defaults to one made from the machine's name; `ip` is told to the guest by its
    cloud-init.
    """

    name: str
    mac: str | None = None
    ip: str | None = None
    model: NicModel = "virtio-net"


def network_of(name: str, table: Mapping[str, Any], where: Where, faults: Faults) -> Network | None:
    """A network from its table; one with faults as if they were not there, if that can be."""
    if problem := network_name_problem(name):
        faults.add(where(()), problem)
    fields = dict(table)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        listed = ", ".join(map(repr, _KINDS))
        message = "is missing" if kind is None else f"must be one of {listed}, not {kind!r}"
        hint = f"one of {listed}" if kind is None else suggestion(kind, _KINDS)
        faults.add(where(("kind",)), message, hint)
        return None
    network: Network | None
    network, _ = structured(fields, _KINDS[kind], where, faults)
    if network is not None and (found := list(_network_faults(network))):
        faults.add_all(found, where)
        return _plainest(network)
    return network


def _plainest(network: Network) -> Network:
    """The plainest network of the same kind."""
    return Bridge(bridge="br0") if isinstance(network, Bridge) else type(network)()


def network_to_table(network: Network) -> dict[str, Any]:
    """The table `network_of` reads."""
    kind = next(name for name, cls in _KINDS.items() if cls is type(network))
    fields = {key: item for key, item in unstructure_any(network).items() if item is not None}
    return {"kind": kind, **fields}


def subnet_of(network: Network) -> ipaddress.IPv4Network | None:
    """What fixed addresses are from."""
    if isinstance(network, Nat) or network.subnet is None:
        return None
    return ipaddress.IPv4Network(network.subnet)


def is_carried(network: Network) -> bool:
    """Whether somebody beside QEMU carries its frames, to whom a NIC has a cable."""
    return not isinstance(network, Nat)


def fits(nic: Nic, network: Network) -> bool:
    """Whether a NIC is of the kind by which one is in such a network."""
    match network:
        case Segment():
            return isinstance(nic, DgramNic | StreamNic)
        case Nat():
            return isinstance(nic, UserNic)
        case Bridge():
            return isinstance(nic, TapNic)


def nic_table(join: Join, network: Network) -> dict[str, Any]:
    """The NIC as a table of the spec."""
    common = {"model": join.model} | ({} if join.mac is None else {"mac": join.mac})
    match network:
        case Segment():
            return {"kind": network.socket, **common}
        case Nat():
            net = {} if network.net is None else {"net": network.net}
            return {"kind": "user", **common, **net, "restrict": network.restrict}
        case Bridge():
            return {"kind": "tap", **common, "vhost": network.vhost}


def _network_faults(network: Network) -> Iterator[Fault]:
    if isinstance(network, Nat):
        if network.net is not None:
            yield from _subnet_faults("net", network.net)
        return
    if isinstance(network, Bridge) and (problem := ifname_problem(network.bridge)):
        yield Fault("bridge", problem)
    if network.subnet is not None and (found := list(_subnet_faults("subnet", network.subnet))):
        yield from found
    elif isinstance(network, Bridge):
        yield from _bridge_faults(network)


def _subnet_faults(key: str, text: str) -> Iterator[Fault]:
    try:
        net = ipaddress.IPv4Network(text)
    except ValueError:
        hint = "10.1.0.0/24: the bits after the prefix are 0"
        yield Fault(key, f"{text!r} is not an IPv4 network", hint)
        return
    if net.prefixlen > 30:
        yield Fault(key, f"{text!r} has no room for two machines")


def _bridge_faults(network: Bridge) -> Iterator[Fault]:
    subnet = subnet_of(network)
    if network.address is not None:
        if not network.make:
            yield Fault("address", "is for a bridge that is made", "make = true")
        if problem := address_problem(network.address, subnet):
            yield Fault("address", problem)
    if network.dhcp is not None:
        if not network.make or network.address is None:
            message = "is for a bridge that is made and has an address"
            yield Fault("dhcp", message, 'make = true, address = "192.168.5.1"')
        yield from _range_faults(network.dhcp, network.address, subnet)


def address_problem(text: str, subnet: ipaddress.IPv4Network | None) -> str:
    """Why a host of *subnet* cannot have the address; empty when it can."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return f"{text!r} is not an IPv4 address"
    if subnet is None:
        return "needs the network's subnet"
    if address not in subnet:
        return f"{text} is not in {subnet}"
    if address in (subnet.network_address, subnet.broadcast_address):
        return f"{text} is no single host's address in {subnet}"
    return ""


def gives_away(network: Network, address: str) -> bool:
    """Whether DHCP may give the address, which has no faults, to anybody."""
    if not isinstance(network, Bridge) or network.dhcp is None:
        return False
    first, _, last = network.dhcp.partition("-")
    low, mid, high = (ipaddress.IPv4Address(it.strip()) for it in (first, address, last))
    return low <= mid <= high


def _range_faults(
    text: str, own: str | None, subnet: ipaddress.IPv4Network | None
) -> Iterator[Fault]:
    first, dash, last = (part.strip() for part in text.partition("-"))
    if not dash:
        yield Fault("dhcp", f"{text!r} is not FIRST-LAST", '"192.168.5.100-192.168.5.199"')
        return
    problems = [problem for end in (first, last) if (problem := address_problem(end, subnet))]
    if problems:
        yield Fault("dhcp", problems[0])
    elif ipaddress.IPv4Address(first) > ipaddress.IPv4Address(last):
        yield Fault("dhcp", f"ends at {last}, before it begins at {first}")
    elif own is not None and not address_problem(own, subnet):
        low, mid, high = map(ipaddress.IPv4Address, (first, own, last))
        if low <= mid <= high:
            yield Fault("dhcp", f"holds {own}, the host's own address")
