"""Which of two processes a machine is, when its supervisor has died while it moved."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from qmpkit.errors import MachineDied, MachineGone, QmpkitError
from qmpkit.machine.keep import Home, attached
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import break_off
from qmpkit.operations.migration.convergence import is_switched
from qmpkit.operations.migration.errors import MigrationFailed
from qmpkit.operations.migration.local_end import LocalRest
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.postcopy import Outlook, Postcopy, outlook
from qmpkit.operations.migration.unstuck import unstuck
from qmpkit.operations.ports import forwards_of, ports_again
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.process.errors import ProcessVanished
from qmpkit.process.identity import boot_id
from qmpkit.qmp.errors import MonitorAbsent, MonitorLost
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.moves.cables import vacated
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.record import End, Heir, Record

__all__ = ["Arrival", "Owner", "owner_of_guest", "reached", "settle_heir"]

_DYING = 5.0

_Answer = TypeVar("_Answer")

log = logging.getLogger("qmpkit.supervisor")


class Owner(Enum):
    """Who has the guest."""

    SOURCE = "source"
    HEIR = "heir"
    NOBODY = "nobody"
    """The heir may have run and has ended: what the source has is of the past."""
    BOTH = "two of them"
    """It is the heir's, which needs the source until the rest of its memory has come."""


@attrs.frozen
class Arrival:
    """What the heir says: the `migration`'s status, and whether its guest `runs`."""

    migration: str
    runs: bool


def owner_of_guest(source: str | None, heir: Arrival | None) -> Owner:
    """By what the source says of the migration, and the heir; None: it has ended.  Pure.

    One that is loaded has all of the guest, and nobody but its supervisor told it to run; a
    source that has sent all runs no more by itself.  Once postcopy has begun, nothing leads back.
    """
    if is_switched(source or "") or (heir is not None and is_switched(heir.migration)):
        return _owner_in_postcopy(source, heir)
    if heir is None:
        return Owner.NOBODY if source == "completed" else Owner.SOURCE
    loaded = heir.migration == "completed" and source in (None, "completed")
    return Owner.HEIR if heir.runs or loaded else Owner.SOURCE


def _owner_in_postcopy(source: str | None, heir: Arrival | None) -> Owner:
    match outlook(source, None if heir is None else heir.migration):
        case Outlook.ARRIVED:
            return Owner.HEIR
        case Outlook.LOST | Outlook.ORPHANED:
            return Owner.NOBODY
    return Owner.BOTH


async def settle_heir(kept: Kept, means: Means, seen: Callable[[], None]) -> None:
    """Have one process of a machine whose supervisor died while it moved; none has written twice.

    The guest goes on where it is; *seen* is called before what may take long, the rest of its
    memory.  When nobody can tell whether the heir has run, or part of the guest is lost, both
    end, which is for the restart policy to answer.  Raises what `attached` does when one of them
    lives and does not answer: then neither is touched.
    """
    record, heir = kept.record, kept.record.heir
    if heir is None:
        return
    new_home = Home(Path(heir.sockets), kept.home.logs)
    async with AsyncExitStack() as stack:
        theirs = await reached(stack, kept, means, heir, new_home)
        ours = await reached(stack, kept, means, record, kept.home)
        theirs, arrival = await _says(theirs, _arrival)
        ours, sent = await _says(ours, _sent)
        owner = owner_of_guest(sent, arrival)
        log.warning("machine %r was moving: its guest is with the %s", kept.name, owner.value)
        if owner is Owner.BOTH and ours is not None and theirs is not None and arrival is not None:
            seen()
            owner = await _united(kept, ours, theirs, run=not arrival.runs)
        kept.tell("moved" if owner is Owner.HEIR else "stayed", "its supervisor died meanwhile")
        await _forget_new_images(kept, means, owner)
        await _clear(kept, owner, ours, theirs)
    if owner is Owner.HEIR:
        gone, kept.home = kept.home, new_home
        kept.note(**attrs.asdict(heir, recurse=False), heir=None, change=None, phase="up")
    else:
        gone = new_home
        kept.note(heir=None)
    await kept.write(means.journal)
    await vacated(kept, means, gone)


async def _united(kept: Kept, ours: Machine, theirs: Machine, *, run: bool) -> Owner:
    """Have the rest of a guest's memory come to the heir, which *run*s it then, if it is to."""
    options, rest = MigrationOptions(), LocalRest(theirs)
    again = partial(rest.laid_again, options, None, ours)
    kept.enter("migrating", "its supervisor died, and the rest of its memory is to come yet")
    let_go = _nothing if run and kept.declared == "running" else None
    owner = Owner.HEIR
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_give_up_when_stopped, kept, theirs)
            within = options.recover_within
            await Postcopy(ours, rest, again, recover_within=within).bring(let_go)
            nursery.cancel_scope.cancel()
    except* MigrationFailed:  # the source had not let go of the images
        owner = Owner.SOURCE
    except* QmpkitError as errors:
        why = str(errors.exceptions[0])
        kept.tell("lost", why)
        kept.note(phase="ending", end=End(Mishap.LOST, why, 0.0, time.time(), boot_id()))
        owner = Owner.NOBODY
    return owner


def _nothing() -> None:
    """It was the source's no more before."""


async def _give_up_when_stopped(kept: Kept, machine: Machine) -> None:
    await kept.until(lambda: kept.declared == "stopped")
    if kept.grace != 0:
        await trio.sleep(STEP_GRACE)
    machine.child.kill()


async def _forget_new_images(kept: Kept, means: Means, owner: Owner) -> None:
    """Of a guest that goes on with its old images: before it does, and they are the right ones.

    What has been made for the move is undone with the machine's other changes.
    """
    change = kept.record.change
    if owner is Owner.SOURCE and change is not None and change.sure:
        kept.note(change=attrs.evolve(change, sure=False))
        await kept.write(means.journal)


async def reached(
    stack: AsyncExitStack, kept: Kept, means: Means, at: Record | Heir, home: Home
) -> Machine | None:
    """The machine of a process, with its monitor; None when it has ended."""
    if at.identity is None:
        return None
    try:
        child = await stack.enter_async_context(means.ground.adopt(at.identity, home))
        wanted = attached(
            at.spec,
            at.facts,
            at.argv,
            child,
            home,
            patience=means.patience,
            graces=means.options.graces,
        )
        return await stack.enter_async_context(wanted)
    except ProcessVanished:
        return None
    except (MonitorAbsent, MonitorLost):
        with trio.move_on_after(_DYING):  # one that was not to outlive our predecessor
            await child.wait()
            return None
        raise


async def _says(
    machine: Machine | None, ask: Callable[[Machine], Awaitable[_Answer]]
) -> tuple[Machine | None, _Answer | None]:
    """A machine and its answer; neither, when it has ended, if only when it was asked."""
    if machine is not None:
        with suppress(MachineGone, MachineDied):
            return machine, await ask(machine)
    return None, None


async def _migration(machine: Machine) -> str:
    told = await machine.execute("query-migrate")
    return str(told.get("status", "none"))


_HAS_SENT = ("postmigrate", "finish-migrate")


async def _sent(machine: Machine) -> str:
    """What a source says of its guest's move, not of one by which it has come itself."""
    told = await _migration(machine)
    if told != "completed":
        return told
    status = (await machine.execute("query-status"))["status"]
    return told if status in _HAS_SENT else "none"


async def _arrival(machine: Machine) -> Arrival:
    status = await machine.execute("query-status")
    return Arrival(await _migration(machine), bool(status["running"]))


async def _clear(kept: Kept, owner: Owner, ours: Machine | None, theirs: Machine | None) -> None:
    """End whoever does not have the guest, and leave the other as if nothing had been begun."""
    if owner is Owner.HEIR and ours is not None:
        ours.moved()
        await ours.stop()
    if owner is not Owner.HEIR and theirs is not None:
        await theirs.kill()
    if owner is Owner.NOBODY and ours is not None:
        ours.child.kill()
        await ours.wait()
    if owner is Owner.SOURCE and ours is not None:
        with trio.fail_after(STEP_GRACE):
            await break_off(ours)
            await unstuck(ours)
    keeper = theirs if owner is Owner.HEIR else ours
    if keeper is not None and keeper.report is None:
        ports = forwards_of(keeper.spec.nics)
        await ports_again(keeper, kept.name, ports, partial(kept.tell, "ports-lost"))
