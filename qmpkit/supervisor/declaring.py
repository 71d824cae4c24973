"""What is wanted of kept machines: written down first, and made true then."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import get_args

import attrs
import trio

from qmpkit.errors import (
    Fault,
    HostLacks,
    JournalFailed,
    MachineDied,
    MachineGone,
    SpecInvalid,
    cause_of,
)
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.machine.state import State
from qmpkit.process.places import discard
from qmpkit.spec.farm_order import circles
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import machine_name_problem
from qmpkit.spec.sites import undecided
from qmpkit.spec.suggest import among
from qmpkit.supervisor.alter import matters
from qmpkit.supervisor.entries import Entries
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.layers import Forgotten, carried_over, refuse_points, still_there
from qmpkit.supervisor.ledger import finish_change
from qmpkit.supervisor.record import Declared, Record, Wanted, digest_of

__all__ = ["Declaring", "known_in", "refuse_unsettled", "whose"]

LOOKS = 8
"""Specs that are looked at together: of hundreds the first is to start while others are."""

UNDO_GRACE = 5.0
"""Seconds that taking back the record of a failed start may take."""


class Declaring:
    """Has kept machines be as their owner says; new ones come to *entries*."""

    def __init__(self, entries: Entries, forgotten: Forgotten) -> None:
        self._entries = entries
        self._machines = entries.machines
        self._means = entries.means
        self._journal = entries.means.journal
        self._networks = entries.means.networks
        self._tasks = entries.tasks
        self._forgotten = forgotten
        self._looks = trio.CapacityLimiter(LOOKS)

    async def ensure(self, wanted: Wanted, *, wait: bool) -> Kept:
        """See `Supervisor.ensure`."""
        name = wanted.spec.name
        if faults := [*wanted.faults(), *self._circles(wanted)]:
            raise SpecInvalid(faults, whose(name))
        while True:
            kept = self._machines.get(name)
            if kept is None:
                return await self._make(wanted, wait)
            async with kept.changing:
                if self._machines.get(name) is kept:
                    refuse_unsettled(kept)
                    await self._ensure_known(kept, wanted, wait)
                    return kept

    async def declare(
        self, name: str, state: Declared, powerdown_grace: float | None = None
    ) -> Kept:
        """See `Supervisor.declare`."""
        if state not in get_args(Declared):
            known = " or ".join(map(repr, get_args(Declared)))
            raise SpecInvalid([Fault("", f"cannot be declared {state!r}", known)], whose(name))
        kept = known_in(self._machines, name)
        if state == "stopped" and kept.call_off is not None:  # else it would have its turn first
            default = self._means.powerdown_grace
            kept.call_off(default if powerdown_grace is None else powerdown_grace)
        if state == "paused":
            await self._paused_on_its_way(kept)
        async with kept.turn:
            if state != "stopped" or kept.has_left:
                refuse_unsettled(kept)
            kept.grace = powerdown_grace
            wanted = attrs.evolve(kept.record, declared=state)
            await self._change(kept, wanted, None)
        return kept

    async def _paused_on_its_way(self, kept: Kept) -> None:
        """Not only once it has arrived, which may take hours; it arrives as it is."""
        if kept.is_moving and kept.vm is not None:
            patience = trio.move_on_after(self._means.patience)
            with patience, suppress(MachineDied, MachineGone):
                await kept.vm.pause()
                kept.note(declared="paused")

    def _circles(self, wanted: Wanted) -> Iterator[Fault]:
        if not wanted.after and not wanted.requires:
            return  # whoever waits for nobody is in no circle
        before = {name: (*k.record.after, *k.record.requires) for name, k in self._machines.items()}
        before[wanted.spec.name] = (*wanted.after, *wanted.requires)
        for circle in circles(before):
            yield Fault("requires", f"none of them could start first: {' → '.join(circle)}")

    async def _make(self, wanted: Wanted, wait: bool) -> Kept:
        spec = wanted.spec
        if problem := machine_name_problem(spec.name):
            raise SpecInvalid([Fault("name", problem)])
        home = self._means.home(spec.name)
        record = Record(
            name=spec.name,
            declared=wanted.declared,
            spec=spec,
            asked="",  # until its turn comes to be looked at
            sockets=str(home.sockets),
            **matters(wanted),
        )
        kept = self._entries.make(record, home)
        kept.changing.acquire_nowait()  # in the moment in which its name is taken
        self._machines[spec.name] = kept
        try:
            await self._networks.make(spec.name, record.joined)
            known = await self._left_of(spec.name)
            resolution = await self._resolved(carried_over(spec, known))
            found = undecided(resolution.spec, spec)
            started = attrs.evolve(record, spec=found, asked=digest_of(spec))
            await self._change(kept, started, resolution, wait=wait)
        except BaseException:
            try:
                with trio.move_on_after(UNDO_GRACE, shield=True):
                    await self._networks.drop(spec.name, record.joined)
            finally:
                kept.is_forgotten = True
                del self._machines[spec.name]
            raise
        finally:
            kept.changing.release()
        with trio.move_on_after(UNDO_GRACE, shield=True):  # it is up, and its layers on record
            await self._forgotten.drop(spec.name)
        return kept

    async def _left_of(self, name: str) -> MachineSpec | None:
        """What is there of a forgotten machine's disks."""
        known = self._forgotten.get(name)
        return None if known is None else await trio.to_thread.run_sync(still_there, known)

    async def _ensure_known(self, kept: Kept, wanted: Wanted, wait: bool) -> None:
        resolution = None
        if (asked := digest_of(wanted.spec)) == kept.record.asked:
            record = kept.record.wanting(wanted)
        elif kept.tended:
            hint = f'declare({kept.name!r}, "stopped"), or qmpkit stop, first'
            fault = Fault("", "it is up with another spec", hint)
            raise SpecInvalid([fault], whose(kept.name))
        else:
            self._means.shelf.refuse_another(kept)
            await finish_change(kept)
            before = kept.record.spec
            record = attrs.evolve(kept.record.wanting(wanted), plugged=(), spec=wanted.spec)
            await self._networks.make(record.name, record.joined)
            spec = carried_over(wanted.spec, before)
            refuse_points(spec)
            resolution = await self._resolved(spec, before.uuid)
            record = attrs.evolve(record, spec=undecided(resolution.spec, spec), asked=asked)
        await self._change(kept, record, resolution, wait=wait)

    async def _resolved(self, spec: MachineSpec, known: str | None = None) -> Resolution:
        """With a UUID, by which its monitor can be told from another's."""
        if spec.uuid is None:
            spec = attrs.evolve(spec, uuid=known or str(uuid.uuid4()))
        async with self._looks:
            return await resolve(spec)

    async def _change(
        self, kept: Kept, wanted: Record, resolution: Resolution | None, *, wait: bool = True
    ) -> None:
        """Declare, and make it true; without *wait* that is left to its task."""
        if not kept.tended and kept.record.identity is not None:
            # Its task has failed and its QEMU may live: never start a second one.
            await self._tasks.begin(kept, self._tasks.resumed(kept))
        if kept.tended:
            await self._redeclare(kept, wanted)
            if not wait and kept.tended:
                return
            if await self._made_true(kept, wanted.declared):
                return
            # It came to rest before its task saw the declaration.
            wanted = attrs.evolve(kept.record, declared=wanted.declared)
        if wanted.declared != "stopped":
            await self._start(kept, wanted, resolution, wait)
        elif kept.record != wanted or kept.not_durable:
            kept.record = wanted
            await kept.write(self._journal)

    async def _redeclare(self, kept: Kept, wanted: Record) -> None:
        """Write down what is wanted of a machine that is up, then let its task make it true."""
        before = kept.record
        kept.record = attrs.evolve(before, declared=wanted.declared, **matters(wanted))
        kept.refusal = None
        if not await kept.write(self._journal) and wanted.declared != "stopped":
            # Meanwhile its end may have been noted: only what was declared is taken back.
            kept.note(declared=before.declared, **matters(before))
            assert kept.not_durable is not None
            raise kept.not_durable
        kept.declarations += 1
        kept.notify()

    async def _made_true(self, kept: Kept, state: Declared) -> bool:
        """Wait until it is as declared; False when it has come to rest before."""
        await kept.until(
            lambda: (
                not kept.tended
                or kept.refusal is not None
                or _is_true(kept, state)
                or _failed_again(kept)
            )
        )
        if kept.refusal is not None:
            raise kept.refusal
        if not _is_true(kept, state):
            kept.must_not_be_alone(f"is {state}")
        if state == "running" and _failed_again(kept):
            what = f"machine {kept.name!r} was let run, and QEMU has stopped it again"
            raise HostLacks(what, "see what its disks lack, space as a rule, and declare it anew")
        return state == "stopped" or _is_true(kept, state)

    async def _start(
        self, kept: Kept, wanted: Record, resolution: Resolution | None, wait: bool
    ) -> None:
        """Declare a machine that is down, then start it; a failure takes the declaration back.

        Without *wait*, once it is declared a start that fails is its policy's matter.
        """
        before, anew = kept.record, wanted.history.forgiven()
        kept.record = attrs.evolve(wanted, phase="starting", identity=None, history=anew)
        kept.refusal = None
        try:
            kept.entry = self._journal.post(kept.record)
            if not wait:
                await kept.entry.durable()
            life = self._tasks.first(kept, resolution) if wait else self._tasks.enlisted(kept)
            await self._tasks.begin(kept, life)
            if not wait:
                self._means.gate.look()  # nobody is to be seen as blocked for want of this one
        except BaseException as error:
            kept.record = before = before.after_try(kept.record)
            kept.notify()  # it takes no room any more
            with trio.move_on_after(UNDO_GRACE, shield=True):
                await self._take_back(kept, before)
            if kept.state in ("queued", "starting"):
                failed = isinstance(error, Exception)  # a cancellation has words too, of trio's
                kept.enter("failed", cause_of(error) if failed else "the start was cancelled")
            raise

    async def _take_back(self, kept: Kept, before: Record) -> None:
        with suppress(JournalFailed):
            if before.phase == "starting":
                await self._journal.remove(kept.name)
            else:
                await self._journal.put(before)
        await trio.to_thread.run_sync(discard, kept.home.sockets)


def known_in(machines: Mapping[str, Kept], name: str) -> Kept:
    """The machine of that name; SpecInvalid when there is none."""
    if (kept := machines.get(name)) is None:
        fault = Fault("name", "no kept machine has it", among(name, machines))
        raise SpecInvalid([fault], whose(name))
    return kept


def _is_true(kept: Kept, state: Declared) -> bool:
    match state:
        case "running":
            return kept.state in (State.RUNNING.value, State.SUSPENDED.value)
        case "paused":
            return kept.state == State.PAUSED.value or _has_failed(kept)
    return False


def _has_failed(kept: Kept) -> bool:
    """Whether QEMU has stopped its vCPUs by itself."""
    return kept.vm is not None and kept.vm.state is State.FAILED


def _failed_again(kept: Kept) -> bool:
    return _has_failed(kept) and kept.let_run == kept.declarations


def refuse_unsettled(kept: Kept) -> None:
    """Raise SpecInvalid for one that another supervisor has, or may have by now."""
    if (leaving := kept.record.leaving) is None:
        return
    message = f"nobody knows yet what came of its move to {leaving.place}"
    hint = f"`qmpkit migrate {kept.name} --settle` asks"
    if kept.has_left:
        message, hint = f"it has migrated to {leaving.place}", "ask for it there"
    raise SpecInvalid([Fault("", message, hint)], whose(kept.name))


def whose(name: str) -> str:
    """Of whom an error tells."""
    return f"machine {name!r}"
