"""One machine of a farm from its table: gaps filled in, networks joined, everything settled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.block import Disk
from qmpkit.spec.cloud_init import CloudInit, seed_faults
from qmpkit.spec.convert import unstructure_any
from qmpkit.spec.data import SCHEMA, spec_from_dict
from qmpkit.spec.farm import FarmMachine, Joined
from qmpkit.spec.farm_faults import Steps, steps_of
from qmpkit.spec.farm_group import Group
from qmpkit.spec.farm_networks import Join, Nat, Network, address_problem, nic_table, subnet_of
from qmpkit.spec.farm_seed import seed_of
from qmpkit.spec.farm_text import fill
from qmpkit.spec.health import Health, health_needs
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import format_node, mac_of
from qmpkit.spec.network import Nic
from qmpkit.spec.paths import PATHS, map_fields

__all__ = ["Layout", "machine_of"]


@attrs.frozen
class Layout:
    """Which NICs and forwards of the spec the table wrote elsewhere: in `networks` and `ports`."""

    own_nics: int = 0
    port_nic: int | None = None
    own_forwards: int = 0

    def steps(self, path: str) -> Steps:
        """A path of the spec as it is in the table."""
        steps = steps_of(path)
        match steps:
            case ("nics", int() as nic, "forwards", int() as number, *rest) if (
                nic == self.port_nic and number >= self.own_forwards
            ):
                return ("ports", number - self.own_forwards, *rest)
            case ("nics", int() as nic, *rest) if nic >= self.own_nics:
                return ("networks", nic - self.own_nics, *rest)
        return steps


def machine_of(
    key: str,
    n: int,
    name: str,
    group: Group,
    table: Mapping[str, Any],
    networks: Mapping[str, Network],
) -> tuple[FarmMachine | None, Layout, list[tuple[Steps, Fault]]]:
    """The machine, or what is wrong with it, by steps in its table.

    `after` and `requires` are left as the table has them.
    """
    gaps: dict[str, str | int] = {"name": name, "n": n}
    joins = [_filled(join, gaps) for join in group.networks]
    cables = [nic_table(join, networks[join.name]) for join in joins]
    fields = map_fields(dict(table), PATHS, lambda _, text: fill(text, gaps))
    layout = _put_in(fields, cables, group)
    faults: list[tuple[Steps, Fault]] = [
        (("networks", number, "ip"), Fault("", problem))
        for number, join in enumerate(joins)
        if join.ip is not None and (problem := _ip_problem(join.ip, networks[join.name]))
    ]
    if group.ports and layout.port_nic is None:
        hint = 'join one of kind "nat"'
        faults.append((("ports",), Fault("", "no network of the machine takes them", hint)))
    try:
        spec = _settled(spec_from_dict({**fields, "schema": SCHEMA, "name": name}))
    except SpecInvalid as error:
        faults += [(layout.steps(fault.path), fault) for fault in error.faults]
    else:
        faults += _unmet(group.health, spec)
    if faults:
        return None, layout, faults
    joined = tuple(_joined(joins, networks, spec.nics[layout.own_nics :]))
    machine = FarmMachine(
        name=name,
        group=key,
        spec=spec,
        networks=joined,
        restart=group.restart,
        health=group.health,
        after=group.after,
        requires=group.requires,
    )
    if group.cloud_init is None:
        return machine, layout, []
    seed = seed_of(group.cloud_init, name, n, spec, joined)
    return attrs.evolve(machine, seed=seed), layout, list(_seed_faults(seed))


def _filled(join: Join, gaps: Mapping[str, str | int]) -> Join:
    mac = None if join.mac is None else fill(join.mac, gaps)
    ip = None if join.ip is None else fill(join.ip, gaps)
    return attrs.evolve(join, mac=mac, ip=ip)


def _put_in(fields: dict[str, Any], cables: list[dict[str, Any]], group: Group) -> Layout:
    """Networks and ports into `nics`; a list that is none is left for the spec to complain of."""
    own = fields.get("nics", [])
    if not isinstance(own, list):
        return Layout(port_nic=0)
    nics = fields["nics"] = [*own, *cables]
    for place, nic in enumerate(nics):
        if not isinstance(nic, dict) or nic.get("kind") != "user":
            continue
        before = nic.get("forwards", [])
        if not isinstance(before, list):
            before = []
        if group.ports:
            ports = [_plain(forward) for forward in group.ports]
            nics[place] = {**nic, "forwards": [*before, *ports]}
        return Layout(len(own), place, len(before))
    return Layout(len(own))


def _plain(forward: object) -> dict[str, Any]:
    fields: dict[str, Any] = unstructure_any(forward)
    return {key: value for key, value in fields.items() if value is not None}


def _ip_problem(ip: str, network: Network) -> str:
    if isinstance(network, Nat):
        return "QEMU gives the address in a network of kind 'nat'"
    return address_problem(ip, subnet_of(network))


def _settled(spec: MachineSpec) -> MachineSpec:
    """Every name that would be chosen later, chosen: by the same rules, and seen in the journal."""
    nics = [_with_mac(nic, spec.name) for nic in spec.nics]
    disks = [_with_node(disk) for disk in spec.disks]
    return attrs.evolve(spec, nics=nics, disks=disks)


def _with_mac(nic: Nic, machine: str) -> Nic:
    return attrs.evolve(nic, mac=(nic.mac or mac_of(machine, nic.id)).lower())


def _with_node(disk: Disk) -> Disk:
    return attrs.evolve(disk, node=disk.node or format_node(disk.id))


def _joined(
    joins: Sequence[Join], networks: Mapping[str, Network], nics: Sequence[Nic]
) -> Iterator[Joined]:
    for join, nic in zip(joins, nics, strict=True):
        yield Joined(name=join.name, network=networks[join.name], nic=nic.id, ip=join.ip)


def _unmet(health: Health | None, spec: MachineSpec) -> Iterator[tuple[Steps, Fault]]:
    if health is None:
        return
    for fault in health_needs(health, agent=spec.agent, nics=spec.nics, serials=spec.serials):
        yield steps_of(fault.path), fault


def _seed_faults(seed: CloudInit) -> Iterator[tuple[Steps, Fault]]:
    """Only of what differs from machine to machine: the rest was looked at in the table."""
    for fault in seed_faults(CloudInit(hostname=seed.hostname)):
        yield ("cloud_init", *steps_of(fault.path)), fault
