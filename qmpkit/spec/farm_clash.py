"""What two machines of a farm cannot share: what is written, and what says who is who."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.block import Overlay
from qmpkit.spec.farm import FarmMachine
from qmpkit.spec.farm_machine import Layout
from qmpkit.spec.farm_networks import Bridge, Network, gives_away, subnet_of
from qmpkit.spec.farm_tables import Merged
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import TapNic, UserNic

__all__ = ["Placed", "clashes"]

_ANY = "0.0.0.0"


@attrs.frozen
class Placed:
    """A machine and where each of its fields was written."""

    machine: FarmMachine
    merged: Merged
    layout: Layout

    def where(self, path: str) -> str:
        """The place of a field of the spec."""
        return self.merged.where(self.layout.steps(path))


@attrs.frozen
class _Claim:
    """`what` in words ("MAC 52:…"), which only one may have; `path` in the spec."""

    key: tuple[object, ...]
    what: str
    path: str
    hint: str = ""


def clashes(
    placed: Sequence[Placed], networks: Mapping[str, Network], tables: Mapping[str, Merged]
) -> Iterator[tuple[str, Fault]]:
    """Every second claim on something, and where it is made."""
    yield from _bridges_twice(networks, tables)
    yield from _subnets_twice(networks, tables)
    owner: dict[tuple[object, ...], Placed] = {}
    told: set[str] = set()
    for item in placed:
        for claim in _claims(item.machine):
            first = owner.setdefault(claim.key, item)
            path = item.where(claim.path)
            # One of two hundred machines with one disk is enough to say.
            if first is not item and path not in told:
                told.add(path)
                names = f"{first.machine.name!r} and {item.machine.name!r}"
                yield path, Fault("", f"{claim.what} is of both {names}", claim.hint)
    yield from _files(placed, told)
    yield from _ports(placed, told)
    yield from _hosts(placed, networks)


def _bridges_twice(
    networks: Mapping[str, Network], tables: Mapping[str, Merged]
) -> Iterator[tuple[str, Fault]]:
    first: dict[str, str] = {}
    for name, network in networks.items():
        # From the table: a network with faults is not what it says.
        bridge = tables[name].table.get("bridge")
        if isinstance(network, Bridge) and isinstance(bridge, str):
            other = first.setdefault(bridge, name)
            if other != name:
                message = f"{bridge!r} is already the bridge of {other!r}"
                yield tables[name].where(("bridge",)), Fault("", message)


def _subnets_twice(
    networks: Mapping[str, Network], tables: Mapping[str, Merged]
) -> Iterator[tuple[str, Fault]]:
    """The host cannot be in one network by two of its devices."""
    first: dict[object, str] = {}
    for name, network in networks.items():
        if isinstance(network, Bridge) and network.address is not None:
            other = first.setdefault(subnet_of(network), name)
            if other != name:
                message = f"{network.subnet!r} is already the host's on the bridge of {other!r}"
                yield tables[name].where(("subnet",)), Fault("", message)


def _claims(machine: FarmMachine) -> Iterator[_Claim]:
    spec = machine.spec
    for number, nic in enumerate(spec.nics):
        yield _Claim(("mac", nic.mac), f"MAC {nic.mac}", f"nics[{number}].mac", "put {n} into it")
        if isinstance(nic, TapNic) and nic.ifname is not None:
            yield _Claim(("tap", nic.ifname), f"tap {nic.ifname}", f"nics[{number}].ifname")
    places = {nic.id: f"nics[{number}].ip" for number, nic in enumerate(spec.nics)}
    for join in machine.networks:
        if join.ip is not None:
            what = f"{join.ip} in network {join.name!r}"
            yield _Claim(("ip", join.name, join.ip), what, places[join.nic], "put {n} into it")
    for key in ("uuid", "vsock", "vmgenid"):
        value = getattr(spec, key)
        if value not in (None, "auto"):
            value = value.lower() if isinstance(value, str) else value
            yield _Claim((key, value), f"{key} {value}", key, "leave it out")


def _written(spec: MachineSpec) -> Iterator[tuple[str, str]]:
    """Files that the machine writes, and where they stand."""
    for number, disk in enumerate(spec.disks):
        if not disk.is_readonly:
            yield disk.file, f"disks[{number}].file"
    if isinstance(spec.firmware, Uefi) and spec.firmware.vars is not None:
        yield spec.firmware.vars, "firmware.vars"
    if spec.memory.mem_path is not None and spec.memory.share:
        yield spec.memory.mem_path, "memory.mem_path"


def _read(spec: MachineSpec) -> Iterator[tuple[str, str]]:
    """Files that must not change below the machine."""
    for number, disk in enumerate(spec.disks):
        if disk.is_readonly:
            yield disk.file, f"disks[{number}].file"
        if isinstance(disk.make, Overlay):
            yield disk.make.file, f"disks[{number}].make.file"
    if spec.memory.mem_path is not None and not spec.memory.share:
        yield spec.memory.mem_path, "memory.mem_path"


def _files(placed: Sequence[Placed], told: set[str]) -> Iterator[tuple[str, Fault]]:
    writer: dict[str, Placed] = {}
    for item in placed:
        for file, path in _written(item.machine.spec):
            first = writer.setdefault(file, item)
            where = item.where(path)
            if first is not item and where not in told:
                told.add(where)
                names = f"{first.machine.name!r} and {item.machine.name!r}"
                yield where, Fault("", f"{file!r} is written by both {names}", "put {name} into it")
    for item in placed:
        for file, path in _read(item.machine.spec):
            other = writer.get(file, item)
            where = item.where(path)
            if other is not item and where not in told:
                told.add(where)
                message = f"{file!r} is written by {other.machine.name!r}"
                yield where, Fault("", message, f"{item.machine.name!r} would see it change")


def _ports(placed: Sequence[Placed], told: set[str]) -> Iterator[tuple[str, Fault]]:
    taken: dict[tuple[str, int], dict[str, Placed]] = {}
    for item in placed:
        for number, nic in enumerate(item.machine.spec.nics):
            for place, forward in enumerate(nic.forwards if isinstance(nic, UserNic) else ()):
                if forward.host == 0:
                    continue
                others = taken.setdefault((forward.proto, forward.host), {})
                first = _same_address(others, forward.address)
                others.setdefault(forward.address, item)
                where = item.where(f"nics[{number}].forwards[{place}].host")
                if first is not None and first is not item and where not in told:
                    told.add(where)
                    names = f"{first.machine.name!r} and {item.machine.name!r}"
                    message = f"port {forward.host} of the host is of both {names}"
                    yield where, Fault("", message, "0 is any free port")


def _same_address(others: Mapping[str, Placed], address: str) -> Placed | None:
    """Who has the port where *address* would be heard too."""
    if address == _ANY:
        return next(iter(others.values()), None)
    return others.get(address) or others.get(_ANY)


def _hosts(
    placed: Iterable[Placed], networks: Mapping[str, Network]
) -> Iterator[tuple[str, Fault]]:
    """Addresses of machines that are the host's own on a bridge, or that DHCP gives away."""
    own = {
        (name, network.address)
        for name, network in networks.items()
        if isinstance(network, Bridge) and network.address
    }
    for item in placed:
        for join in item.machine.networks:
            message = ""
            if (join.name, join.ip) in own:
                message = f"{join.ip} is the host's own address on {join.name!r}"
            elif join.ip is not None and gives_away(join.network, join.ip):
                message = f"{join.ip} is in the range that DHCP gives away on {join.name!r}"
            if message:
                number = [nic.id for nic in item.machine.spec.nics].index(join.nic)
                yield item.where(f"nics[{number}].ip"), Fault("", message)
