"""A machine that was moving to another supervisor: where its guest is, and what follows.

The other side is asked by the move's number, and what it says is true for ever: after
"discarded" nothing of that move is run there.  When it cannot be asked nobody guesses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from enum import Enum
from functools import partial
from pathlib import Path

import attrs
import trio

from qmpkit.errors import JournalFailed, QmpkitError
from qmpkit.machine.ledger import Change
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import break_off, finalized
from qmpkit.operations.block.recovery import own_files
from qmpkit.operations.migration.convergence import is_switched
from qmpkit.operations.migration.place import MovePlace, connected, move_place
from qmpkit.operations.migration.remote_end import asked_what_came
from qmpkit.operations.migration.unstuck import unstuck
from qmpkit.operations.migration.wire import Refused, Wire, WireLost
from qmpkit.operations.ports import forwards_of, ports_again
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.stillness import go_on
from qmpkit.process.errors import ProcessVanished
from qmpkit.process.places import discard
from qmpkit.supervisor.events import EventLog
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.moves.arrivals import move_named
from qmpkit.supervisor.moves.heirs import reached
from qmpkit.supervisor.moves.rest_there import brought, note_loss
from qmpkit.supervisor.record import Leaving, Record

__all__ = ["Source", "Whereabouts", "end_arriving", "ended", "gone_on", "left"]
__all__ += ["outcome_at", "place_of", "remove_own", "taken_back"]
__all__ += ["settle", "settled", "source_of", "where", "whereabouts"]

log = logging.getLogger("qmpkit.supervisor")

_PATIENCE = 5.0
"""Seconds that the other side is given when it is asked what has come of a move."""

_AGAIN = 30.0


class Whereabouts(Enum):
    """Where the guest is."""

    HERE = "here"
    THERE = "there"
    UNKNOWN = "unknown"


class Source(Enum):
    """What is left of the QEMU that it was moving from."""

    ENDED = "ended"
    SENDING = "sending"
    SENT = "sent"
    """All of the guest, which stands still."""
    SWITCHED = "switched"
    """To postcopy: part of the guest's memory, and nothing leads back."""
    RUNNING = "running"


def where(source: Source, outcome: str | None) -> Whereabouts:
    """By what its QEMU says, and what the other side answers (None: nothing).  Pure.

    Only a source that has sent all, or switched, or ended, can have had its guest run elsewhere.
    """
    if source in (Source.SENDING, Source.RUNNING):
        return Whereabouts.HERE
    return _ANSWERS.get(outcome, Whereabouts.UNKNOWN)


_ANSWERS: Mapping[str | None, Whereabouts] = {
    "runs": Whereabouts.THERE,
    "ran": Whereabouts.THERE,
    "lost": Whereabouts.THERE,
    "discarded": Whereabouts.HERE,
}


async def source_of(machine: Machine | None) -> Source:
    """Ask its QEMU (`query-migrate`, `query-status`)."""
    if machine is None or machine.report is not None:
        return Source.ENDED
    state = await machine.execute("query-status")
    if state["running"]:
        return Source.RUNNING
    status = str((await machine.execute("query-migrate")).get("status"))
    if is_switched(status):
        return Source.SWITCHED
    # One that stands still, and has come by a move itself, says "completed" of that.
    sent = status == "completed" and state["status"] in ("postmigrate", "finish-migrate")
    return Source.SENT if sent else Source.SENDING


def place_of(leaving: Leaving) -> MovePlace:
    """Where to ask.  Blocking; SpecInvalid, when its certificates are gone for instance."""
    return move_place(leaving.place, None if leaving.tls is None else Path(leaving.tls))


async def outcome_at(place: MovePlace, machine: str, ident: str, who: str) -> str | None:
    """What *who* says at *place* of a move, by its number; None when it says nothing."""
    try:
        with trio.fail_after(_PATIENCE):
            async with await connected(place) as stream:
                return await asked_what_came(Wire(stream), place, ident, who)
    except (WireLost, Refused, QmpkitError) as lost:
        log.warning("machine %r: %s says nothing of its move: %s", machine, place, lost)
    except trio.TooSlowError:
        log.warning("machine %r: %s says nothing of its move", machine, place)
    return None


async def whereabouts(kept: Kept, place: MovePlace, source: Source = Source.SENT) -> Whereabouts:
    """Ask at *place* what has come of its move; what it says is told of."""
    leaving = kept.record.leaving
    assert leaving is not None
    outcome = await outcome_at(place, kept.name, leaving.id, leaving.who)
    found = where(source, outcome)
    if outcome is not None:
        kept.tell(
            "asked", f"{place} says of {move_named(leaving.id)}: {outcome}; it is {found.value}"
        )
    return found


async def taken_back(machine: Machine, *, runs: bool, lost_ports: Callable[[str], object]) -> None:
    """Have a source that stood still for a move its images and ports again, and its guest run."""
    await break_off(machine)
    await unstuck(machine)
    await finalized(machine)
    await ports_again(machine, machine.name, forwards_of(machine.spec.nics), lost_ports)
    if not (await machine.execute("query-status"))["running"]:
        await go_on(machine, ran=runs)


async def gone_on(kept: Kept, means: Means, machine: Machine) -> None:
    """It is here: it has its images and ports again, and runs as it is declared."""
    with trio.move_on_after(STEP_GRACE, shield=True):
        lost = partial(kept.tell, "ports-lost")
        await taken_back(machine, runs=kept.declared == "running", lost_ports=lost)
        kept.note(leaving=None)
        await kept.write(means.journal)
        kept.tell("stayed", "it has not moved")


async def left(kept: Kept, means: Means) -> None:
    """It is with the other supervisor: wait until its task is done, and forget it.

    A cancellation waits for that; were it not done in time, the next supervisor asks again.
    """
    kept.has_left, kept.is_moving = True, False
    kept.notify()
    with trio.move_on_after(STEP_GRACE, shield=True):
        await kept.until(lambda: not kept.tended)
        await _off_the_record(kept, means)


async def _off_the_record(kept: Kept, means: Means) -> None:
    assert kept.record.leaving is not None
    kept.has_left = True
    leaving = kept.record.leaving
    kept.tell("migrated", f"to {leaving.place} ({move_named(leaving.id)})")
    with trio.move_on_after(STEP_GRACE, shield=True):
        await means.forget(kept)
        for folder in (kept.home.sockets, kept.home.logs):
            await trio.to_thread.run_sync(discard, folder)


async def settle(kept: Kept, means: Means, place: MovePlace, *, here: bool) -> Whereabouts:
    """See `Supervisor.settle`."""
    machine = None if kept.vm is None else kept.vm.machine
    source = await source_of(machine)
    found = Whereabouts.HERE
    if machine is None and kept.state == "migrating" and not here:  # its task asks all the time
        return Whereabouts.UNKNOWN
    if not here and source is Source.SWITCHED and machine is not None:
        found = await _brought(kept, place, machine)
    elif not here:
        found = await whereabouts(kept, place, source)
    if found is Whereabouts.UNKNOWN:
        return found
    if machine is None and kept.tended:
        kept.found_out = found is Whereabouts.HERE
        kept.notify()
        await kept.until(lambda: kept.record.leaving is None or _has_gone(kept))
    elif found is Whereabouts.THERE:
        if machine is not None:
            await ended(machine)
        await left(kept, means)
    elif machine is not None:
        await _goes_on_here(kept, means, machine)
    else:
        await _stays(kept, means)
    return found


async def _brought(kept: Kept, place: MovePlace, machine: Machine) -> Whereabouts:
    leaving = kept.record.leaving
    assert leaving is not None
    outcome = await brought(kept, leaving, place, machine)
    found = where(await source_of(machine), outcome)
    kept.tell("asked", f"{place} says of {move_named(leaving.id)}: {outcome}; it is {found.value}")
    return found


async def _goes_on_here(kept: Kept, means: Means, machine: Machine) -> None:
    """Whole, or, when part of it had left, from its disks and by its policy."""
    if await source_of(machine) is not Source.SWITCHED:
        await gone_on(kept, means, machine)
        return
    why = "part of its memory had left for another supervisor, which never had it run"
    await note_loss(kept, means, machine, why)
    await machine.kill()


def _has_gone(kept: Kept) -> bool:
    return kept.has_left and not kept.tended


async def ended(machine: Machine) -> None:
    """Its guest is with the other supervisor: this QEMU is of no more use."""
    machine.moved()
    with trio.move_on_after(machine.graces.total, shield=True):
        await machine.stop()


async def _stays(kept: Kept, means: Means) -> None:
    kept.note(leaving=None)
    await kept.write(means.journal)
    kept.tell("stayed", "it has not moved")


async def settled(kept: Kept, means: Means, seen: Callable[[], None]) -> None:
    """Wait until it is known where the guest is, asking now and then; `Kept.has_left` if there.

    For its task, before it does anything with what is on record.  One that is declared
    stopped meanwhile ends here, and is asked about later.
    """
    while (leaving := kept.record.leaving) is not None and not kept.has_left:
        async with AsyncExitStack() as stack:
            machine = await reached(stack, kept, means, kept.record, kept.home)
            found = await _found_out(kept, leaving, machine, seen)
            if machine is not None and machine.report is not None:
                machine = None
            if found is Whereabouts.THERE:
                if machine is not None:
                    await ended(machine)
                await _off_the_record(kept, means)
            elif found is Whereabouts.HERE and machine is not None:
                await _goes_on_here(kept, means, machine)
            elif found is Whereabouts.HERE:
                await _stays(kept, means)
            elif kept.declared == "stopped":
                if machine is not None:
                    await machine.kill()
                return
        if found is Whereabouts.UNKNOWN:
            kept.enter("unknown", f"it may run at {leaving.place}, which cannot be asked")
            seen()
            with trio.move_on_after(_AGAIN):
                await kept.until(lambda: kept.found_out is not None or kept.declared == "stopped")


async def _found_out(
    kept: Kept, leaving: Leaving, machine: Machine | None, seen: Callable[[], None]
) -> Whereabouts:
    told, kept.found_out = kept.found_out, None
    if told is not None:
        return Whereabouts.HERE if told else Whereabouts.THERE
    source = await source_of(machine)
    if (found := where(source, None)) is not Whereabouts.UNKNOWN:
        return found
    try:
        place = await trio.to_thread.run_sync(place_of, leaving)
    except QmpkitError as error:
        log.warning("machine %r: %s", kept.name, error)
        return Whereabouts.UNKNOWN
    if source is Source.SWITCHED and machine is not None:
        seen()
        return await _brought(kept, place, machine)
    return await whereabouts(kept, place, source)


async def end_arriving(records: Iterable[Record], means: Means, events: EventLog) -> None:
    """End what was coming here when our predecessor died, and was not told to run yet."""
    async with trio.open_nursery() as nursery:
        for record in records:
            nursery.start_soon(_end_one, record, means, events)


async def _end_one(record: Record, means: Means, events: EventLog) -> None:
    home = means.home(record.name)
    home = attrs.evolve(home, sockets=Path(record.sockets))
    if record.identity is not None:
        with suppress(ProcessVanished):
            async with means.ground.adopt(record.identity, home) as child:
                child.kill()
                with trio.move_on_after(_PATIENCE):
                    await child.wait()
    for folder in (home.sockets, home.logs):
        await trio.to_thread.run_sync(discard, folder)
    if record.change is not None:  # the images of disks that were to come along
        await trio.to_thread.run_sync(remove_own, record.change)
    with suppress(JournalFailed):  # whoever supervises next finds nothing alive
        await means.journal.remove(record.name)
    why = "its supervisor died while it was moving here: it is where it came from"
    events.tell(record.name, "discarded", why)


def remove_own(change: Change) -> None:
    """Remove the images that were made for a move which came to nothing.  Blocking."""
    for file in own_files(change):
        with suppress(OSError):
            Path(file).unlink()
