"""What a machine's table says besides the fields of a `MachineSpec`, and the names it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.farm_faults import Faults, Where, steps_of, structured
from qmpkit.spec.farm_networks import Join
from qmpkit.spec.farm_seed import SeedTable, seed_table_faults
from qmpkit.spec.farm_text import fill, pattern_problem
from qmpkit.spec.health import Health, health_faults
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import machine_name_problem
from qmpkit.spec.network import Forward
from qmpkit.spec.paths import PATHS, map_fields
from qmpkit.spec.restart import NEVER, Restart, restart_faults

__all__ = ["COUNT_LIMIT", "Group", "group_of", "names_of", "path_faults", "spec_part"]

COUNT_LIMIT = 1000
"""More machines than a host holds; a slip of the finger should not take minutes to say so."""


@attrs.frozen(kw_only=True)
class Group:
    """A table's own fields; the others are the spec's.

    `count`: how many machines it makes, 0 too; left out, one that cannot be scaled.  `name`:
    a pattern with `{n}`, from 1; by default the table's name, with `{n}` after it when there
    is a `count`.  `networks` take the place of the profile's NICs.  `ports` lead into the
    machine through its first "nat" network, or NIC of kind "user".  `after` and `requires`
    name tables, for all their machines, or single machines.  `health` with an empty list of
    checks is none, whatever the defaults say.
    """

    count: int | None = None
    name: str | None = None
    networks: tuple[Join, ...] = ()
    ports: tuple[Forward, ...] = ()
    restart: Restart = NEVER
    health: Health | None = None
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    cloud_init: SeedTable | None = None


_OWN = {field.name for field in attrs.fields(Group)}
_SPEC = {field.name for field in attrs.fields(MachineSpec)} - {"name"}


def group_of(key: str, table: Mapping[str, Any], where: Where, faults: Faults) -> Group:
    """The group of a table; what is at fault is told and left out."""
    for name in sorted(table.keys() - _OWN - _SPEC):
        faults.add_unknown(where((name,)), name, [*_OWN, *_SPEC, "profile"])
    if problem := machine_name_problem(key) or _brace_problem(key):
        faults.add(where(()), problem)
    own = {name: value for name, value in table.items() if name in _OWN}
    if isinstance(health := own.get("health"), dict) and health.get("checks") == []:
        del own["health"]
    read, bad = structured(own, Group, where, faults)
    group = read or Group()
    found = list(_group_faults(group))
    faults.add_all(found, where)
    bad |= {str(steps_of(fault.path)[0]) for fault in found}
    if "networks" in bad:
        bad.add("ports")  # which of them took the ports is not known
    plain: dict[str, Any] = {name: getattr(Group(), name) for name in bad & _OWN}
    return attrs.evolve(group, **plain)


def spec_part(table: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the spec."""
    return {name: value for name, value in table.items() if name in _SPEC}


def names_of(key: str, group: Group) -> list[tuple[int, str]]:
    """The number and name of each machine."""
    numbers = range(1, 2 if group.count is None else group.count + 1)
    if group.name is None:
        return [(n, key if group.count is None else f"{key}{n}") for n in numbers]
    return [(n, fill(group.name, {"n": n})) for n in numbers]


def _brace_problem(key: str) -> str:
    if "{" in key or "}" in key:
        return f"{key!r}: braces belong into name, a pattern"
    return ""


def _group_faults(group: Group) -> Iterator[Fault]:
    count = group.count
    if count is not None and not 0 <= count <= COUNT_LIMIT:
        yield Fault("count", f"must be from 0 to {COUNT_LIMIT}, not {count}")
    yield from _pattern_faults(group)
    yield from restart_faults(group.restart)
    if group.health is not None:
        yield from health_faults(group.health)
    if group.cloud_init is not None:
        for fault in seed_table_faults(group.cloud_init):
            yield attrs.evolve(fault, path=f"cloud_init.{fault.path}")


def _pattern_faults(group: Group) -> Iterator[Fault]:
    if group.name is not None:
        if problem := pattern_problem(group.name, ("n",)):
            yield Fault("name", *problem)
        elif (group.count or 0) > 1 and fill(group.name, {"n": 1}) == fill(group.name, {"n": 2}):
            yield Fault("name", f"{group.name!r} is one name for {group.count} machines", "add {n}")
    for number, join in enumerate(group.networks):
        for key in ("mac", "ip"):
            text = getattr(join, key)
            if text is not None and (problem := pattern_problem(text)):
                yield Fault(f"networks[{number}].{key}", *problem)
    hostname = None if group.cloud_init is None else group.cloud_init.hostname
    if hostname is not None and (problem := pattern_problem(hostname)):
        yield Fault("cloud_init.hostname", *problem)


def path_faults(table: Mapping[str, Any]) -> Iterator[Fault]:
    """Paths whose gaps cannot be filled in, or that lead where no name should."""
    found: list[Fault] = []

    def look(where: str, text: str) -> str:
        if problem := pattern_problem(text, path=True):
            found.append(Fault(where, *problem))
        return text

    map_fields(dict(table), PATHS, look)
    yield from found
