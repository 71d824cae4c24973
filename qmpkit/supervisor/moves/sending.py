"""A kept machine's move to another supervisor, here or on another host.

What the other side answers to "run" decides.  Before it is asked the guest is here, whatever
fails; afterwards it is there, and its record here is forgotten.  In between the record says
that it is `leaving`: whoever loses the answer asks again (`departures`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from qmpkit.errors import Fault, MachineGone, QmpkitError, SpecInvalid
from qmpkit.operations.migration.convergence import Policy, Round, policy_of
from qmpkit.operations.migration.errors import (
    CannotMigrate,
    MigrationFailed,
    MigrationLost,
    MigrationUnknown,
)
from qmpkit.operations.migration.incoming import generation_of
from qmpkit.operations.migration.migrate import agreed_on, check_source, migrate_held
from qmpkit.operations.migration.moving import Migrated
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.place import MovePlace, connected
from qmpkit.operations.migration.remote_end import RemoteEnd
from qmpkit.operations.migration.storage import DiskPlaces, moves_of
from qmpkit.operations.migration.transfer import Told
from qmpkit.operations.migration.wire import Refused, Wire, WireLost, greeted
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.moves.calling_off import called_off_by_stop
from qmpkit.supervisor.moves.departures import (
    Source,
    Whereabouts,
    ended,
    gone_on,
    left,
    source_of,
    whereabouts,
)
from qmpkit.supervisor.moves.offer import offer_faults, offer_to_dict
from qmpkit.supervisor.moves.recorded_disks import mirrors_on_record
from qmpkit.supervisor.moves.rest_there import note_loss
from qmpkit.supervisor.record import Leaving, Record
from qmpkit.vm import VM

__all__ = ["check_send", "offered", "send"]

log = logging.getLogger("qmpkit.supervisor")


async def send(
    kept: Kept,
    means: Means,
    place: MovePlace,
    policy: str | Policy,
    options: MigrationOptions | None,
    told: Told | None,
    disks: DiskPlaces,
    collapse: bool,
) -> Migrated:
    """See `Supervisor.migrate`."""
    vm = _up(kept)
    options = place.options(options or MigrationOptions())
    ident = secrets.token_hex(16)
    kept.is_moving, is_there = True, False
    try:
        async with (
            vm.machine.changing.moving(str(place)),
            offered(kept.record, vm, place, ident, disks, collapse=collapse) as end,
            mirrors_on_record(vm.machine, end.moves, place),
        ):
            try:
                await _on_record(kept, means, _leaving(ident, place, end.who))
                with called_off_by_stop(kept, has_arrived=lambda: end.has_arrived):
                    took = await migrate_held(
                        vm.machine,
                        end,
                        policy=policy,
                        options=options,
                        told=partial(_tell, kept, place, told),
                        lost_ports=partial(kept.tell, "ports-lost"),
                    )
            except MigrationUnknown as unknown:
                await _asked_at_once(kept, means, vm, place, unknown)
                is_there, took = True, Migrated(0.0, 0.0, 0, 0)
            except MigrationLost as lost:
                await _settle_loss(kept, means, vm, end, lost)
                took = Migrated(0.0, 0.0, 0, 0)
            except BaseException:
                if not end.has_arrived:
                    with trio.move_on_after(STEP_GRACE, shield=True):
                        await _stays(kept, means)
                raise
            finally:
                is_there = is_there or end.has_arrived
    finally:
        if is_there:  # cancelled a moment later, it is there all the same
            await left(kept, means)
        kept.is_moving = False
        kept.notify()
    return took


def _tell(kept: Kept, place: MovePlace, told: Told | None, now: Round) -> None:
    if now.phase != "precopy":
        kept.explain("migrating", f"its guest runs at {place}, and its memory follows")
    if told is not None:
        told(now)


async def _settle_loss(
    kept: Kept, means: Means, vm: VM, end: RemoteEnd, lost: MigrationLost
) -> None:
    """Whose it is that part of the guest is lost; nobody's when all was there in that moment."""
    if end.outcome in ("runs", "ran"):
        return
    if end.has_arrived:
        raise MigrationLost(lost.machine, lost.why, lost.said, end.place) from lost
    await note_loss(kept, means, vm.machine, str(lost))
    raise lost


async def check_send(
    kept: Kept, place: MovePlace, disks: DiskPlaces, *, collapse: bool
) -> tuple[Fault, ...]:
    """All that is in the way of its moving there, at both ends: a QEMU waits there for a moment."""
    vm = _up(kept)
    try:
        ident = secrets.token_hex(16)
        async with offered(kept.record, vm, place, ident, disks, collapse=collapse) as end:
            try:
                options = place.options(MigrationOptions())
                steers = policy_of("live", options.downtime, options.max_downtime)
                await agreed_on(vm.machine, end, options, steers=steers)
            finally:
                with trio.move_on_after(STEP_GRACE, shield=True):
                    await end.discard(patience=0.0)
    except SpecInvalid as invalid:
        return invalid.faults
    except MigrationFailed as failed:
        return (Fault("to", failed.why),)
    return ()


def _up(kept: Kept) -> VM:
    if kept.vm is None or not kept.tended:
        raise MachineGone(kept.name, "migrating", kept.report)
    return kept.vm


@asynccontextmanager
async def offered(
    record: Record, vm: VM, place: MovePlace, ident: str, disks: DiskPlaces, *, collapse: bool
) -> AsyncIterator[RemoteEnd]:
    """The block in which the other side waits for the guest; it ends with the conversation.

    *record*: what it is told of the machine.  Raises CannotMigrate with what is in the way, here
    and there; MigrationFailed.
    """
    moves, lacking = await moves_of(vm.machine, vm.machine.spec, disks, collapse=collapse)
    faults = [*await check_source(vm.machine), *offer_faults(record), *lacking]
    offer = offer_to_dict(record, ident, await generation_of(vm.machine), moves)
    try:
        stream = await connected(place)
    except WireLost as lost:
        raise CannotMigrate(record.name, [*faults, _nobody(place, lost)]) from lost
    wire = Wire(stream)
    end = RemoteEnd(wire, place, record.name, moves, collapse=collapse)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(wire.close)
        try:
            await greeted(wire, on_another_host=bool(place.host))
        except (WireLost, Refused) as lost:
            raise CannotMigrate(record.name, [*faults, _nobody(place, lost)]) from lost
        try:
            await stack.enter_async_context(end.offered(offer))
        except CannotMigrate as cannot:
            raise CannotMigrate(record.name, [*faults, *cannot.faults]) from cannot
        if faults:
            raise CannotMigrate(record.name, faults)
        yield end


def _nobody(place: MovePlace, why: QmpkitError) -> Fault:
    """That it was not even offered there."""
    return Fault("to", f"{place}: {why}")


def _leaving(ident: str, place: MovePlace, who: str) -> Leaving:
    tls = None if place.tls is None else str(place.tls)
    return Leaving(id=ident, place=str(place), who=who, tls=tls)


async def _on_record(kept: Kept, means: Means, leaving: Leaving) -> None:
    kept.note(leaving=leaving)
    if not await kept.write(means.journal):
        kept.note(leaving=None)
        assert kept.not_durable is not None
        raise kept.not_durable


async def _stays(kept: Kept, means: Means) -> None:
    kept.note(leaving=None)
    await kept.write(means.journal)


async def _asked_at_once(
    kept: Kept, means: Means, vm: VM, place: MovePlace, unknown: MigrationUnknown
) -> None:
    """An answer was lost: perhaps no more than that; MigrationUnknown when nobody can tell."""
    found = Whereabouts.UNKNOWN
    if await source_of(vm.machine) is Source.SWITCHED:  # it has been asked for long
        kept.tell("unknown", str(unknown))
        raise unknown
    with trio.move_on_after(STEP_GRACE, shield=True):
        found = await whereabouts(kept, place)
    match found:
        case Whereabouts.THERE:
            await ended(vm.machine)
        case Whereabouts.HERE:
            await gone_on(kept, means, vm.machine)
            raise MigrationFailed(kept.name, unknown.why) from unknown
        case Whereabouts.UNKNOWN:
            kept.tell("unknown", str(unknown))
            raise unknown
