"""A machine's place on its host, taken at its start and changed while it runs."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from qmpkit.errors import HostLacks, SpecInvalid
from qmpkit.host.check_resources import check_resources
from qmpkit.host.placing import decided
from qmpkit.machine.grouping import limit
from qmpkit.machine.ledger import Change
from qmpkit.operations.tune.nic_rates import bound_nics, rates_of
from qmpkit.operations.tune.seats import asks_for_seats, seats
from qmpkit.operations.tune.threads import Tunable, find_threads
from qmpkit.operations.undertaking import undertaking
from qmpkit.process.cgroup import Group, group_of
from qmpkit.process.scheduling import Seat, put_back, seat_all
from qmpkit.spec.check import validate
from qmpkit.spec.convert import unstructure
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import with_rates
from qmpkit.spec.resources import Resources, controllers

__all__ = ["Tuned", "apply", "differing", "take_place"]

_UNDO_GRACE = 10.0
"""Seconds that putting things back may take, some system calls a thread."""


@attrs.frozen
class Tuned:
    """What came of a change: paths of fields that `changed` at once, and those that wait.

    `waits`: what takes a restart from the new spec.
    """

    changed: tuple[str, ...]
    waits: tuple[str, ...]


async def take_place(machine: Tunable, *, before: MachineSpec | None = None) -> None:
    """Put the threads of *machine* where its spec says, and bound its NICs: at its start and
    when it is found.

    *before*: what it may have been tuned to since; that is given back where its spec says
    nothing of it, and limits are set as it says.  Does nothing for a machine whose spec says
    nothing.  Raises HostLacks.
    """
    await bound_nics(machine, machine.spec, None if before is None else rates_of(before))
    if before is not None and before.resources != machine.spec.resources:
        await trio.to_thread.run_sync(_limit_again, machine, before)
    if not asks_for_seats(machine.spec) and (before is None or not asks_for_seats(before)):
        return
    async with _seated(machine, machine.spec, before):
        pass


def _limit_again(machine: Tunable, before: MachineSpec) -> None:
    """Its group's limits as its spec says; *before*: what they may have become.  Blocking."""
    if (group := _group(machine)) is not None:
        try:
            limit(group, machine.spec.resources, controllers(before.resources))
        except HostLacks as error:
            error.source = f"machine {machine.name!r}"
            raise


@asynccontextmanager
async def _seated(
    machine: Tunable, spec: MachineSpec, before: MachineSpec | None
) -> AsyncIterator[None]:
    """The threads as *spec* says within the block, and from then on unless it fails."""
    threads = await find_threads(machine)
    wanted = seats(spec, threads, before=before, free=_free())
    try:
        done = await trio.to_thread.run_sync(seat_all, wanted)
    except HostLacks as error:
        error.source = f"machine {machine.name!r}"
        raise
    try:
        yield
    except BaseException:
        with trio.move_on_after(_UNDO_GRACE, shield=True):
            await trio.to_thread.run_sync(put_back, done)
        raise


def _free() -> Seat:
    """How a thread sits of which nothing is said: as this process does."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    return Seat(cpus, "other", 0, os.getpriority(os.PRIO_PROCESS, 0))


async def apply(machine: Tunable, changed: Callable[[MachineSpec], MachineSpec]) -> Tuned:
    """Change a machine that runs, as far as that is possible; see `Tune.apply`.

    *changed* makes the new spec of the one that it has when it is this change's turn: of one
    seen before, it would take back what others have changed meanwhile.
    """
    async with machine.changing:
        old = machine.spec
        new = changed(old)
        validate(new)
        group = await trio.to_thread.run_sync(_group, machine)
        fields = list(differing(old, new))
        live = tuple(it for it in fields if _is_live(it, group))
        waits = tuple(it for it in fields if it not in live)
        if not live:
            return Tuned((), waits)
        target = await trio.to_thread.run_sync(_decided, _carried(old, new, live))
        change = Change(what="tune it", spec=target, begun=old)
        async with undertaking(machine, change) as it:
            async with _limited(group, target, old), _seated(machine, target, old):
                await bound_nics(machine, target, rates_of(old))
            it.done()
        return Tuned(live, waits)


def _group(machine: Tunable) -> Group | None:
    return group_of(machine.child.pid)


def _is_live(field: str, group: Group | None) -> bool:
    """A limit can be changed of a machine that was started in a group of its own."""
    if field == "cpu.pin" or _RATE.fullmatch(field):
        return True
    if not field.startswith("resources."):
        return False
    return group is not None or field.split(".")[1] not in _LIMITS


_RATE = re.compile(r"nics\[\d+\]\.max_(received|sent)")
_LIMITS = ("cpu_max", "cpu_weight", "memory_max", "memory_high", "pids_max", "io_max")


def differing(old: MachineSpec, new: MachineSpec) -> Iterator[str]:
    """The fields in which two specs differ: "cpu.pin", "disks[0].cache", "nics"."""
    before, after = unstructure(old), unstructure(new)
    for name in before:
        if before[name] != after[name]:
            yield from _parts(name, before[name], after[name])


def _parts(name: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict) and name in _TABLES:
        yield from (f"{name}.{key}" for key in before if before[key] != after.get(key))
    elif name in _LISTS and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            keys = {**one, **other}
            yield from (f"{name}[{number}].{key}" for key in keys if one.get(key) != other.get(key))
    else:
        yield name


_TABLES = ("cpu", "memory", "resources")
_LISTS = ("disks", "nics", "numa")


def _carried(old: MachineSpec, new: MachineSpec, live: tuple[str, ...]) -> MachineSpec:
    """*old* with what of *new* can be changed at once."""
    if "cpu.pin" in live:
        old = attrs.evolve(old, cpu=attrs.evolve(old.cpu, pin=new.cpu.pin))
    if any(map(_RATE.fullmatch, live)):
        old = attrs.evolve(old, nics=with_rates(old.nics, new.nics))
    names = [field.split(".")[1] for field in live if field.startswith("resources.")]
    seen = {name: getattr(new.resources, name) for name in names}
    return attrs.evolve(old, resources=attrs.evolve(old.resources, **seen))


def _decided(spec: MachineSpec) -> MachineSpec:
    """*spec* with places that are there, and processors of the host for "auto".  Blocking."""
    for problem in check_resources(_without_memory(spec)):
        raise problem.alone or SpecInvalid([problem.fault], f"machine {spec.name!r}")
    found = decided(_without_memory(spec))  # its memory stays where it is
    resources = attrs.evolve(spec.resources, emulator=found.resources.emulator)
    cpu = attrs.evolve(spec.cpu, pin=found.cpu.pin)
    return attrs.evolve(spec, cpu=cpu, resources=resources)


def _without_memory(spec: MachineSpec) -> MachineSpec:
    """It has its pages already: those that are free now are not asked for."""
    nodes = [attrs.evolve(node, memory=0) for node in spec.numa]
    memory = attrs.evolve(spec.memory, huge_pages=None, lock=False, size=0, dimms=())
    return attrs.evolve(spec, memory=memory, numa=nodes)


@asynccontextmanager
async def _limited(
    group: Group | None, target: MachineSpec, old: MachineSpec
) -> AsyncIterator[None]:
    """The group's limits as *target* says; as *old* says again when the block fails."""
    if group is None or target.resources == old.resources:
        yield
        return

    def write(wanted: Resources, had: Resources) -> None:
        limit(group, wanted, controllers(had))

    try:
        await trio.to_thread.run_sync(write, target.resources, old.resources)
        yield
    except BaseException:
        with trio.move_on_after(_UNDO_GRACE, shield=True):
            await trio.to_thread.run_sync(write, old.resources, target.resources)
        raise
