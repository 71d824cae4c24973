"""Back to a checkpoint of a lab, all of its machines or none.

Those that are up are saved first, so that a failure on the way finds every machine as it was:
it goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, JournalFailed, QmpkitError, SpecInvalid, cause_of
from qmpkit.operations.block.snapshots import known_snapshot
from qmpkit.spec.checkpoints import Checkpoint
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.alter import files_of, take_back
from qmpkit.supervisor.checkpoints import DELETE, Checkpoints, each
from qmpkit.supervisor.keeper import Keeper
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.record import Declared

__all__ = ["rewind"]

log = logging.getLogger("qmpkit.supervisor")

BACK_GRACE = 300.0
"""Seconds that having all machines as they were may take, when a rewind has failed."""

Save = Callable[[str], Awaitable[object]]


@attrs.define
class _Way:
    """One machine on its way: what was declared, and `spec`, from which it goes on if it fails."""

    kept: Kept
    declared: Declared
    spec: MachineSpec


async def rewind(keeper: Keeper, points: Checkpoints, name: str, save: Save) -> Checkpoint:
    """See `Supervisor.rewind`."""
    async with points.turn:
        point = await points.known(name)
        for machine in point.machines:
            kept = keeper.machines.get(machine)
            if kept is not None and kept.declared == "stopped":
                await kept.wait_rest()  # it may be on its way there yet
        ways = _ways(keeper, point)
        await points.write(attrs.evolve(point, rewinding=True))
        try:
            await _gone_back(keeper, ways, point, save)
        except BaseException:
            with trio.move_on_after(BACK_GRACE, shield=True):
                await _as_before(keeper, ways)
                with suppress(JournalFailed):  # then it is told as interrupted, and can be repeated
                    await points.write(point)
            raise
        point = attrs.evolve(point, rewinding=False)
        with trio.move_on_after(BACK_GRACE, shield=True):
            await points.write(point)
            await keeper.shelf.sweep()
            await _remove_left(keeper, ways)
        return point


def _ways(keeper: Keeper, point: Checkpoint) -> list[_Way]:
    """Its machines; SpecInvalid with all that keeps them from going back."""
    faults = []
    if not point.whole:
        faults.append(Fault(point.name, "its taking, or its deletion, was interrupted", DELETE))
    machines = [keeper.machines[name] for name in point.machines if name in keeper.machines]
    known = {kept.name for kept in machines}
    faults += [
        Fault(name, "it is forgotten, or called otherwise")
        for name in point.machines
        if name not in known
    ]
    for kept in machines:
        try:
            if not known_snapshot(kept.spec, point.name).whole:
                faults.append(Fault(kept.name, f"its snapshot {point.name!r} was merged in part"))
        except SpecInvalid as error:
            faults += [attrs.evolve(it, path=kept.name) for it in error.faults]
    if faults:
        raise SpecInvalid(faults, f"checkpoint {point.name!r}")
    return [_Way(kept, kept.declared, kept.spec) for kept in machines]


async def _gone_back(keeper: Keeper, ways: list[_Way], point: Checkpoint, save: Save) -> None:
    by_name = {way.kept.name: way for way in ways}
    machines = [way.kept for way in ways]

    async def saved(kept: Kept) -> None:
        await save(kept.name)
        by_name[kept.name].spec = kept.spec

    async def reverted(kept: Kept) -> None:
        await keeper.revert(kept.name, point.name, memory=True, rewinds=True)

    async def standing(kept: Kept) -> None:
        await keeper.declare(kept.name, "paused")

    async def running(kept: Kept) -> None:
        if by_name[kept.name].declared != "paused":
            await keeper.declare(kept.name, "running")

    await each((kept for kept in machines if kept.vm is not None), saved)
    await each(machines, reverted)
    for ready in _in_order(machines):
        await each(ready, standing)
    with trio.move_on_after(BACK_GRACE, shield=True):  # not to be cut off between two of them
        await each(machines, running)


async def _as_before(keeper: Keeper, ways: list[_Way]) -> None:
    async with trio.open_nursery() as nursery:
        for way in ways:
            nursery.start_soon(_undone, keeper, way)
    declared = {way.kept.name: way.declared for way in ways}
    for ready in _in_order([way.kept for way in ways]):
        async with trio.open_nursery() as nursery:
            for kept in ready:
                if kept.declared != (state := declared[kept.name]):
                    nursery.start_soon(_alone, kept, keeper.declare, kept.name, state)


def _in_order(machines: Iterable[Kept]) -> Iterator[list[Kept]]:
    """Round by round: one does not start while another that it requires is declared stopped."""
    by_name = {kept.name: kept for kept in machines}
    rounds = TopologicalSorter(
        {name: by_name.keys() & kept.record.requires for name, kept in by_name.items()}
    )
    rounds.prepare()
    while rounds.is_active():
        names = rounds.get_ready()
        yield [by_name[name] for name in names]
        rounds.done(*names)


async def _undone(keeper: Keeper, way: _Way) -> None:
    """One machine is to start from where it was when it was saved."""
    kept = way.kept
    if kept.spec.resume_from is not None and kept.declared == "stopped":
        way.spec = _saved_spec(keeper, kept, way)
    if kept.spec != way.spec:
        await _alone(kept, _taken_back, keeper, way)


async def _taken_back(keeper: Keeper, way: _Way) -> None:
    await keeper.declare(way.kept.name, "stopped", 0.0)
    async with way.kept.turn:
        await take_back(way.kept, way.spec, keeper.journal)


async def _alone(kept: Kept, do: Callable[..., Awaitable[object]], *words: object) -> None:
    """What goes wrong with one machine is no reason to leave the others."""
    try:
        await do(*words)
    except QmpkitError as error:
        log.exception("machine %r is not as it was before the rewind", kept.name)
        kept.tell("differs", f"its rewind failed, and it is not as it was: {cause_of(error)}")


def _saved_spec(keeper: Keeper, kept: Kept, way: _Way) -> MachineSpec:
    """Its save came to an end when nobody looked."""
    return way.spec if keeper.shelf.folder_of(kept.spec) is None else kept.spec


async def _remove_left(keeper: Keeper, ways: list[_Way]) -> None:
    """The layers with what the machines have done since; a disk's first file is never one."""
    for way in ways:
        points = {file for it in way.spec.snapshots for file in it.disks.values()}
        first = {disk.origin or disk.file for disk in way.spec.disks}
        left = files_of(way.spec) - files_of(way.kept.spec) - points - first
        vm = way.kept.vm
        if vm is not None and left and not await vm.machine.ledger.users_of(sorted(left)):
            await trio.to_thread.run_sync(_unlink, left)


def _unlink(files: set[str]) -> None:
    for file in files:
        Path(file).unlink(missing_ok=True)
