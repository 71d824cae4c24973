"""All kept machines of one directory: adopted, made, declared, forgotten."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import get_args

import attrs
import trio

from qmpkit._trio import raise_collapsed, service_nursery
from qmpkit.errors import Fault, JournalFailed, QmpkitError, SpecInvalid
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.machine.keep import Ground, Home
from qmpkit.machine.launch import LaunchOptions
from qmpkit.operations.block.at_rest import AtRest
from qmpkit.process.kept import trim_log
from qmpkit.process.places import Places, claimed_places, discard
from qmpkit.spec.farm_order import circles
from qmpkit.spec.health import health_faults
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import machine_name_problem
from qmpkit.spec.restart import restart_faults
from qmpkit.spec.sites import undecided
from qmpkit.spec.suggest import suggestion
from qmpkit.supervisor.alter import amend, disks_at_rest, matters, revert
from qmpkit.supervisor.chronicle import Chronicle
from qmpkit.supervisor.events import EventLog
from qmpkit.supervisor.gate import Gate
from qmpkit.supervisor.joining import Joining
from qmpkit.supervisor.journal import Journal, read_records
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.layers import Forgotten, carried_over, refuse_points
from qmpkit.supervisor.ledger import finish_change
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.networks import Networks
from qmpkit.supervisor.record import Declared, Record, Wanted, digest_of
from qmpkit.supervisor.strangers import tell_strangers
from qmpkit.supervisor.tending import Tending

__all__ = ["Keeper"]

log = logging.getLogger("qmpkit.supervisor")

UNDO_GRACE = 5.0
"""Seconds that taking back the record of a failed start may take."""

RELEASE_GRACE = 5.0
"""Seconds that giving up the directory may take: some system calls."""

_TRIM_EVERY = 60.0


class Keeper:
    """The kept machines of the supervisor *name*; `open` adopts them, its end leaves them."""

    def __init__(
        self,
        name: str,
        *,
        events: EventLog,
        ground: Ground,
        networks: Networks,
        starts: int,
        options: LaunchOptions,
        powerdown_grace: float,
    ) -> None:
        if problem := machine_name_problem(name):
            fault = Fault("name", problem.replace("a machine", "a supervisor"))
            raise SpecInvalid([fault], "supervisor")
        self.name = name
        self.machines: dict[str, Kept] = {}
        self._events = events
        self._networks = networks
        self._gate = Gate(self.machines, starts=starts)
        self._with = partial(
            Means,
            ground=ground,
            networks=networks,
            machines=self.machines,
            gate=self._gate,
            options=options,
            powerdown_grace=powerdown_grace,
        )

    @property
    def places(self) -> Places:
        """Its directories."""
        return self._places

    @property
    def joining(self) -> Joining:
        """By which machines that run get NICs in the networks of their farm."""
        return Joining(self._networks, self._journal, self.machines)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Claim the directory and adopt what is on record there.

        Entered once something is known of every machine, a few seconds at most: one
        that is silent holds up nobody else.
        """
        claim = claimed_places(self.name)
        self._places: Places = await trio.to_thread.run_sync(claim.__enter__)
        try:
            async with service_nursery() as services:
                self._journal = Journal(self._places.records)
                self._forgotten = Forgotten(self._places.state / "layers")
                await self._forgotten.load()
                self._tasks = Tending(self._with(journal=self._journal, home=self._home))
                services.start_soon(self._journal.run)
                services.start_soon(self._trim_logs)
                services.start_soon(self._gate.run)
                chronicle = Chronicle(self._places.state / "events")
                self._events.keep(chronicle, await trio.to_thread.run_sync(chronicle.open))
                services.start_soon(chronicle.run)
                async with self._adopted():
                    yield
        finally:
            with trio.move_on_after(RELEASE_GRACE, shield=True):
                await trio.to_thread.run_sync(
                    claim.__exit__, None, None, None, abandon_on_cancel=True
                )

    @asynccontextmanager
    async def _adopted(self) -> AsyncIterator[None]:
        records, lost = await trio.to_thread.run_sync(read_records, self._places.records)
        for record in records:
            home = Home(Path(record.sockets), self._places.logs(record.name))
            self.machines[record.name] = self._kept(record, home)
        for loss in lost:
            why = f"its record was unreadable ({loss.why}) and is now {loss.path}"
            log.error("machine %r: %s", loss.machine, why)
            self._events.tell(loss.machine, "record-lost", why)
        known = {kept.home.sockets for kept in self.machines.values()}
        complete = not await tell_strangers(self._places.runtime, known, self._events) and not lost
        members = {record.name: record.joined for record in records}
        networks = self._networks.open(self._places, members, complete=complete)
        try:
            async with networks, trio.open_nursery() as nursery:
                self._nursery = nursery
                async with trio.open_nursery() as adopting:
                    for kept in self.machines.values():
                        adopting.start_soon(
                            nursery.start, self._tasks.tend, kept, self._tasks.resumed(kept)
                        )
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_collapsed(group)

    async def ensure(self, wanted: Wanted, *, wait: bool) -> Kept:
        """See `Supervisor.ensure`."""
        name = wanted.spec.name
        faults = [*restart_faults(wanted.restart), *self._circles(wanted)]
        faults += [] if wanted.health is None else health_faults(wanted.health)
        if faults:
            raise SpecInvalid(faults, _whose(name))
        while True:
            kept = self.machines.get(name)
            if kept is None:
                return await self._make(wanted, wait)
            async with kept.turn:
                if self.machines.get(name) is kept:
                    await self._ensure_known(kept, wanted, wait)
                    return kept

    def _circles(self, wanted: Wanted) -> Iterator[Fault]:
        if not wanted.after and not wanted.requires:
            return  # whoever waits for nobody is in no circle
        before = {name: (*k.record.after, *k.record.requires) for name, k in self.machines.items()}
        before[wanted.spec.name] = (*wanted.after, *wanted.requires)
        for circle in circles(before):
            yield Fault("requires", f"none of them could start first: {' → '.join(circle)}")

    async def _make(self, wanted: Wanted, wait: bool) -> Kept:
        spec = wanted.spec
        if problem := machine_name_problem(spec.name):
            raise SpecInvalid([Fault("name", problem)])
        home = self._home(spec.name)
        record = Record(
            name=spec.name,
            declared=wanted.declared,
            spec=spec,
            asked=digest_of(spec),
            sockets=str(home.sockets),
            **matters(wanted),
        )
        kept = self._kept(record, home)
        async with kept.turn:
            self.machines[spec.name] = kept  # the name is taken from here on
            try:
                await self._networks.make(spec.name, record.joined)
                resolution = await self._resolved(
                    carried_over(spec, self._forgotten.get(spec.name))
                )
                started = attrs.evolve(record, spec=undecided(resolution.spec, spec))
                await self._change(kept, started, resolution, wait=wait)
            except BaseException:
                del self.machines[spec.name]
                with trio.move_on_after(UNDO_GRACE, shield=True):
                    await self._networks.drop(spec.name, record.joined)
                raise
        await self._forgotten.drop(spec.name)
        return kept

    def layers_of(self, name: str) -> MachineSpec | None:
        """What is known of a machine's disks, also of one that is forgotten."""
        kept = self.machines.get(name)
        return self._forgotten.get(name) if kept is None else kept.spec

    def _kept(self, record: Record, home: Home) -> Kept:
        kept = Kept(record, home, self._events)
        kept.on_change = self._gate.notice
        return kept

    async def _ensure_known(self, kept: Kept, wanted: Wanted, wait: bool) -> None:
        resolution = None
        if (asked := digest_of(wanted.spec)) == kept.record.asked:
            record = kept.record.wanting(wanted)
        elif kept.tended:
            hint = f'declare({kept.name!r}, "stopped") first'
            fault = Fault("", "it is up with another spec", hint)
            raise SpecInvalid([fault], f"machine {kept.name!r}")
        else:
            await finish_change(kept)
            record = attrs.evolve(kept.record.wanting(wanted), plugged=())
            await self._networks.make(record.name, record.joined)
            spec = carried_over(wanted.spec, record.spec)
            refuse_points(spec)
            resolution = await self._resolved(spec, record.spec.uuid)
            record = attrs.evolve(record, spec=undecided(resolution.spec, spec), asked=asked)
        await self._change(kept, record, resolution, wait=wait)

    async def amend(self, wanted: Wanted) -> Kept:
        """See `Supervisor.amend`."""
        kept = self.known(wanted.spec.name)
        async with kept.turn:
            await amend(kept, wanted, self._networks, self._journal)
        return kept

    @asynccontextmanager
    async def at_rest(self, name: str) -> AsyncIterator[AtRest]:
        """See `Supervisor.at_rest`."""
        kept = self.known(name)
        async with kept.turn, disks_at_rest(kept, self._journal, self.machines) as machine:
            yield machine

    async def revert(self, name: str, snapshot: str, *, memory: bool) -> tuple[str, ...]:
        """See `Supervisor.revert`."""
        kept = self.known(name)
        async with kept.turn:
            return await revert(kept, snapshot, self._journal, self.machines, memory=memory)

    def _home(self, name: str) -> Home:
        return Home(self._places.sockets(name), self._places.logs(name))

    async def _resolved(self, spec: MachineSpec, known: str | None = None) -> Resolution:
        """With a UUID, by which its monitor can be told from another's."""
        if spec.uuid is None:
            spec = attrs.evolve(spec, uuid=known or str(uuid.uuid4()))
        return await resolve(spec)

    async def declare(
        self, name: str, state: Declared, powerdown_grace: float | None = None
    ) -> Kept:
        """See `Supervisor.declare`."""
        if state not in get_args(Declared):
            known = " or ".join(map(repr, get_args(Declared)))
            raise SpecInvalid([Fault("", f"cannot be declared {state!r}", known)], _whose(name))
        kept = self.known(name)
        async with kept.turn:
            kept.grace = powerdown_grace
            wanted = attrs.evolve(kept.record, declared=state)
            await self._change(kept, wanted, None)
        return kept

    async def _change(
        self, kept: Kept, wanted: Record, resolution: Resolution | None, *, wait: bool = True
    ) -> None:
        """Declare, and make it true; without *wait* that is left to its task."""
        if not kept.tended and kept.record.identity is not None:
            # Its task has failed and its QEMU may live: never start a second one.
            await self._nursery.start(self._tasks.tend, kept, self._tasks.resumed(kept))
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

    async def forget(self, name: str, *, disks: bool) -> None:
        """See `Supervisor.forget`."""
        kept = self.known(name)
        async with kept.turn:
            if kept.tended or kept.record.identity is not None:
                fault = Fault("", "it is up, or about to be", f'declare({name!r}, "stopped") first')
                raise SpecInvalid([fault], _whose(name))
            await finish_change(kept)
            if not disks:
                await self._forgotten.put(kept.spec)
            await self._journal.remove(name)
            self.machines.pop(name, None)
            self._events.tell(name, "forgotten", "it is declared no longer")
            try:
                await self._networks.drop(name, kept.record.joined)
            except QmpkitError as error:  # who supervises next finds what is left, and nobody in it
                log.warning("of the networks of machine %r something is left: %s", name, error)
            await trio.to_thread.run_sync(discard, kept.home.logs)

    def known(self, name: str) -> Kept:
        """The machine of that name; SpecInvalid when there is none."""
        if (kept := self.machines.get(name)) is None:
            fault = Fault("name", "no kept machine has it", suggestion(name, tuple(self.machines)))
            raise SpecInvalid([fault], _whose(name))
        return kept

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
            lambda: not kept.tended or kept.refusal is not None or _is_true(kept, state)
        )
        if kept.refusal is not None:
            raise kept.refusal
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
            await self._nursery.start(self._tasks.tend, kept, life)
            if not wait:
                self._gate.look()  # nobody is to be seen as blocked for want of this one
        except BaseException as error:
            kept.record = before = before.after_try(kept.record)
            with trio.move_on_after(UNDO_GRACE, shield=True):
                await self._take_back(kept, before)
            if kept.state in ("queued", "starting"):
                kept.enter("failed", str(error) or "the start was cancelled")
            raise

    async def _take_back(self, kept: Kept, before: Record) -> None:
        with suppress(JournalFailed):
            if before.phase == "starting":
                await self._journal.remove(kept.name)
            else:
                await self._journal.put(before)
            await trio.to_thread.run_sync(discard, kept.home.sockets)

    async def _trim_logs(self) -> None:
        while True:
            await trio.sleep(_TRIM_EVERY)
            for kept in list(self.machines.values()):
                await trio.to_thread.run_sync(trim_log, kept.home.stderr)


def _is_true(kept: Kept, state: Declared) -> bool:
    return state != "stopped" and kept.state == state


def _whose(name: str) -> str:
    return f"machine {name!r}"
