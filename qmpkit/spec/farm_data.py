"""Farms and their machines to and from plain data, for the journal: `schema = 1`, newer refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.cloud_init import CloudInit
from qmpkit.spec.convert import unstructure_any
from qmpkit.spec.data import SCHEMA, schema_fault, spec_from_dict, spec_to_dict
from qmpkit.spec.farm import Farm, FarmMachine, Joined
from qmpkit.spec.farm_expand import expand_farm
from qmpkit.spec.farm_faults import Faults, Layer, structured, table_at
from qmpkit.spec.farm_networks import network_of, network_to_table
from qmpkit.spec.farm_tables import Merged
from qmpkit.spec.health import Health, health_faults
from qmpkit.spec.restart import NEVER, Restart
from qmpkit.spec.suggest import among

__all__ = ["farm_from_dict", "farm_to_dict", "machine_digest", "machine_from_dict"]
__all__ += ["machine_to_dict", "scale"]


def farm_to_dict(farm: Farm) -> dict[str, Any]:
    """*farm* as plain data that `farm_from_dict` reads back to an equal farm.

    The form is that of a farm.toml in which variables, includes, defaults and profiles
    have been put in and every path is absolute.
    """
    networks = {name: network_to_table(network) for name, network in farm.networks.items()}
    return {"schema": SCHEMA, "networks": networks, "machines": deepcopy(farm.tables)}


def farm_from_dict(data: Mapping[str, Any], *, source: str = "") -> Farm:
    """The farm that `farm_to_dict` wrote. Raises `SpecInvalid` with every fault."""
    if fault := schema_fault(data):
        raise SpecInvalid([fault], source)
    faults = Faults()
    known = ("schema", "networks", "machines")
    for key in sorted(data.keys() - set(known)):
        faults.add_unknown(key, key, known)
    farm = expand_farm(_tables(data, "networks", faults), _tables(data, "machines", faults), faults)
    if faults.found:
        raise SpecInvalid(faults.found, source)
    return farm


def _tables(data: Mapping[str, Any], kind: str, faults: Faults) -> dict[str, Merged]:
    tables: dict[str, Merged] = {}
    for name, value in table_at(data.get(kind, {}), kind, faults).items():
        layer = Layer("", (kind, name), table_at(deepcopy(value), f"{kind}.{name}", faults))
        tables[name] = Merged(dict(layer.table), [layer])
    return tables


def scale(farm: Farm, group: str, count: int) -> Farm:
    """*farm* with *count* machines of a table that has a `count`; the others stay as they are.

    Raises `SpecInvalid`, as when a file said so.
    """
    if group not in farm.tables:
        hint = among(group, farm.tables)
        raise SpecInvalid([Fault("", f"there is no table machines.{group}", hint)])
    if "count" not in farm.tables[group]:
        hint = "count = 1 in its table gives it a number"
        raise SpecInvalid([Fault(f"machines.{group}.count", "this is a single machine", hint)])
    data = farm_to_dict(farm)
    data["machines"][group]["count"] = count
    return farm_from_dict(data)


@attrs.frozen(kw_only=True)
class _Join:
    name: str
    nic: str
    network: dict[str, Any]
    ip: str | None = None


@attrs.frozen(kw_only=True)
class _Seed:
    hostname: str | None = None
    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    user_data: Any = None
    meta_data: Any = None
    network_config: Any = None


@attrs.frozen(kw_only=True)
class _Recorded:
    """What a machine's dict looks like; the spec and the networks are read by their own."""

    name: str
    group: str
    spec: dict[str, Any]
    seed: _Seed | None = None
    networks: tuple[_Join, ...] = ()
    restart: Restart = NEVER
    health: Health | None = None
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


def machine_to_dict(machine: FarmMachine) -> dict[str, Any]:
    """*machine* as plain data that `machine_from_dict` reads back to an equal one."""
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "name": machine.name,
        "group": machine.group,
        "spec": spec_to_dict(machine.spec),
        "networks": [join_to_dict(join) for join in machine.networks],
        "restart": unstructure_any(machine.restart),
        "after": list(machine.after),
        "requires": list(machine.requires),
    }
    if machine.health is not None:
        data["health"] = unstructure_any(machine.health)
    if machine.seed is not None:
        seed = {field.name: getattr(machine.seed, field.name) for field in attrs.fields(CloudInit)}
        seed["ssh_keys"] = list(machine.seed.ssh_keys)
        data["seed"] = {key: deepcopy(value) for key, value in seed.items() if value is not None}
    return data


def join_to_dict(join: Joined) -> dict[str, Any]:
    """A place in a network, with the network."""
    ip = {} if join.ip is None else {"ip": join.ip}
    return {"name": join.name, "nic": join.nic, **ip, "network": network_to_table(join.network)}


def join_from_dict(data: Mapping[str, Any]) -> Joined:
    """The reverse of `join_to_dict`. Raises `SpecInvalid` with every fault."""
    faults = Faults()
    place = Layer("", ("network",), data["network"])
    network = network_of(data["name"], data["network"], place.where, faults)
    if network is None or faults.found:
        raise SpecInvalid(faults.found)
    return Joined(name=data["name"], network=network, nic=data["nic"], ip=data.get("ip"))


def machine_from_dict(data: Mapping[str, Any], *, source: str = "") -> FarmMachine:
    """The machine that `machine_to_dict` wrote. Raises `SpecInvalid` with every fault.

    What an older qmpkit did not write yet has its default.
    """
    if fault := schema_fault(data):
        raise SpecInvalid([fault], source)
    faults = Faults()
    fields = {key: value for key, value in data.items() if key != "schema"}
    at = Layer("", (), data)
    read, _ = structured(fields, _Recorded, at.where, faults)
    if read is None or faults.found:
        raise SpecInvalid(faults.found, source)
    if read.health is not None:
        faults.add_all(health_faults(read.health), at.where)
    joined = []
    for number, join in enumerate(read.networks):
        place = Layer("", ("networks", number, "network"), join.network)
        network = network_of(join.name, join.network, place.where, faults)
        if network is not None:
            joined.append(Joined(name=join.name, network=network, nic=join.nic, ip=join.ip))
    if faults.found:
        raise SpecInvalid(faults.found, source)
    return FarmMachine(
        name=read.name,
        group=read.group,
        spec=spec_from_dict(read.spec, source=f"{source}: spec" if source else "spec"),
        seed=None if read.seed is None else CloudInit(**attrs.asdict(read.seed, recurse=False)),
        networks=tuple(joined),
        restart=read.restart,
        health=read.health,
        after=read.after,
        requires=read.requires,
    )


def machine_digest(machine: FarmMachine) -> str:
    """A text that is the same for two machines with nothing different, and for no others.

    It is of this version of qmpkit: across versions compare the machines, as `plan` does.
    """
    text = json.dumps(machine_to_dict(machine), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
