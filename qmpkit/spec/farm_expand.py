"""A farm's tables to its machines: counted, named, and held against one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from qmpkit.spec.farm import Farm
from qmpkit.spec.farm_clash import Placed, clashes
from qmpkit.spec.farm_faults import Faults
from qmpkit.spec.farm_group import Group, group_of, names_of, path_faults, spec_part
from qmpkit.spec.farm_machine import machine_of
from qmpkit.spec.farm_networks import Join, Network, network_of
from qmpkit.spec.farm_order import circles
from qmpkit.spec.farm_tables import Merged
from qmpkit.spec.names import machine_name_problem
from qmpkit.spec.suggest import suggestion

__all__ = ["expand_farm"]


def expand_farm(
    networks: Mapping[str, Merged], machines: Mapping[str, Merged], faults: Faults
) -> Farm:
    """The farm, as far as it can be made; *faults* has what is wrong with it."""
    known: dict[str, Network] = {}
    for name, merged in networks.items():
        network = network_of(name, merged.table, merged.where, faults)
        if network is not None:
            known[name] = network
    expansion = _Expansion(known, frozenset(networks), faults)
    for key, merged in machines.items():
        expansion.add(key, merged)
    placed = [expansion.resolve(item) for item in expansion.placed]
    expansion.look_for_circles(placed)
    for path, fault in clashes(placed, known, networks):
        faults.add(path, fault.message, fault.hint)
    return Farm(
        machines=tuple(item.machine for item in placed),
        networks=known,
        tables={key: merged.table for key, merged in machines.items()},
    )


class _Expansion:
    """Collects the machines; `members` also has those that cannot be made for their faults."""

    def __init__(
        self, networks: Mapping[str, Network], named: frozenset[str], faults: Faults
    ) -> None:
        self.networks = networks
        self.named = named  # networks with faults too
        self.faults = faults
        self.placed: list[Placed] = []
        self.members: dict[str, list[str]] = {}
        self._taken: dict[str, str] = {}

    def add(self, key: str, merged: Merged) -> None:
        """All machines of one table."""
        group = group_of(key, merged.table, merged.where, self.faults)
        joins = tuple(self._joins(group, merged))
        if len(joins) < len(group.networks):
            group = attrs.evolve(group, ports=())  # which of them took the ports is not known
        group = attrs.evolve(group, networks=joins)
        table = spec_part(merged.table)
        bad = list(path_faults(table))
        self.faults.add_all(bad, merged.where)
        self.members[key] = [name for _, name in names_of(key, group)]
        told: set[str] = set()
        for n, name in names_of(key, group):
            if self._take(key, name, merged) and merged.complete and not bad:
                self._make(key, n, name, group, table, merged, told)

    def _make(
        self,
        key: str,
        n: int,
        name: str,
        group: Group,
        table: Mapping[str, Any],
        merged: Merged,
        told: set[str],
    ) -> None:
        machine, layout, found = machine_of(key, n, name, group, table, self.networks)
        news = set()
        for steps, fault in found:
            path = merged.where(steps)
            # Once for a table: its other machines would say the same with another number.
            if path not in told:
                self.faults.add(path, fault.message, fault.hint)
                news.add(path)
        told |= news
        if machine is not None:
            self.placed.append(Placed(machine, merged, layout))

    def _take(self, key: str, name: str, merged: Merged) -> bool:
        where = merged.where(("name",)) if "name" in merged.table else merged.where(())
        if problem := machine_name_problem(name):
            if machine_name_problem(key) != problem:  # else it was told of the table
                self.faults.add(where, problem)
            return False
        if name in self._taken:
            self.faults.add(where, f"{name!r} is already a machine of {self._taken[name]}")
            return False
        self._taken[name] = merged.where(())
        return True

    def _joins(self, group: Group, merged: Merged) -> Iterator[Join]:
        seen: set[str] = set()
        for number, join in enumerate(group.networks):
            where = merged.where(("networks", number, "name"))
            if join.name in seen:
                self.faults.add(where, f"{join.name!r} is already joined")
            elif join.name in self.networks:
                yield join
            elif join.name not in self.named:
                known = f"known: {', '.join(sorted(self.named))}" if self.named else ""
                hint = suggestion(join.name, self.named) or known
                self.faults.add(where, f"there is no network {join.name!r}", hint)
            seen.add(join.name)

    def resolve(self, item: Placed) -> Placed:
        """Tables that a machine names as their machines."""
        machine = item.machine
        after = self._machines(item, "after", machine.after)
        requires = self._machines(item, "requires", machine.requires)
        machine = attrs.evolve(machine, after=after, requires=requires)
        return attrs.evolve(item, machine=machine)

    def _machines(self, item: Placed, key: str, names: Sequence[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for number, name in enumerate(names):
            if name in self.members:
                found |= dict.fromkeys(self.members[name])
            elif name in self._taken:
                found[name] = None
            else:
                known = [*self.members, *self._taken]
                where = item.merged.where((key, number))
                message = f"there is no machine {name!r}"
                self.faults.add(where, message, suggestion(name, known))
        return tuple(found)

    def look_for_circles(self, placed: Sequence[Placed]) -> None:
        """Machines that would wait for one another for ever."""
        before = {item.machine.name: item.machine.waits_for for item in placed}
        items = {item.machine.name: item for item in placed}
        for path in circles(before):
            first = items[path[0]]
            key = "requires" if path[1] in first.machine.requires else "after"
            message = f"none of them could start first: {' → '.join(path)}"
            self.faults.add(first.merged.where((key,)), message, "take one of these out")
