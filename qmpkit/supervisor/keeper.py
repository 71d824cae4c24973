"""All kept machines of one directory: adopted, changed at rest, forgotten, left to live on."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from qmpkit._trio import raise_collapsed, service_nursery
from qmpkit.errors import Fault, JournalFailed, QmpkitError, SpecInvalid
from qmpkit.machine.keep import Ground, Home
from qmpkit.machine.launch import LaunchOptions
from qmpkit.operations.block.at_rest import AtRest
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.process.places import Places, claimed_places, discard, second_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import machine_name_problem
from qmpkit.supervisor.alter import amend, disks_at_rest, revert
from qmpkit.supervisor.chronicle import Chronicle
from qmpkit.supervisor.declaring import Declaring, known_in, whose
from qmpkit.supervisor.entries import Entries
from qmpkit.supervisor.events import EventLog
from qmpkit.supervisor.gate import Gate
from qmpkit.supervisor.joining import Joining
from qmpkit.supervisor.journal import Journal, read_records
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.layers import Forgotten
from qmpkit.supervisor.ledger import finish_change
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.moves.arrivals import Arrivals
from qmpkit.supervisor.moves.departures import end_arriving
from qmpkit.supervisor.moves.receiving import Receiving
from qmpkit.supervisor.networks import Networks
from qmpkit.supervisor.record import Declared, Record, Wanted
from qmpkit.supervisor.shelf import Shelf
from qmpkit.supervisor.strangers import tell_strangers
from qmpkit.supervisor.tending import Tending, trim_logs

__all__ = ["Keeper"]

log = logging.getLogger("qmpkit.supervisor")

RELEASE_GRACE = 5.0
"""Seconds that giving up the directory may take: some system calls."""


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
        return Joining(self._networks, self.journal, self.machines)

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
                self.journal = Journal(self._places.journal)
                self._forgotten = Forgotten(self._places.state / "layers")
                await self._forgotten.load()
                self.shelf = Shelf(self._places.saved, self.machines, self.journal)
                services.start_soon(self.journal.run)
                services.start_soon(trim_logs, self.machines)
                services.start_soon(self._gate.run)
                chronicle = Chronicle(self._places.state / "events")
                self._events.keep(chronicle, await trio.to_thread.run_sync(chronicle.open))
                services.start_soon(chronicle.run)
                self._arrivals = Arrivals(self._places.state / "arrivals")
                await self._arrivals.load()
                self.means = self._with(
                    journal=self.journal,
                    home=self._home,
                    shelf=self.shelf,
                    arrivals=self._arrivals,
                    forget=self._left,
                )
                async with self._adopted(self.means):
                    yield
        finally:
            with trio.move_on_after(RELEASE_GRACE, shield=True):
                await trio.to_thread.run_sync(
                    claim.__exit__, None, None, None, abandon_on_cancel=True
                )

    @asynccontextmanager
    async def _adopted(self, means: Means) -> AsyncIterator[None]:
        records, lost = await trio.to_thread.run_sync(read_records, self._places.journal)
        coming = [record for record in records if record.arriving and record.rest is None]
        await end_arriving(coming, means, self._events)
        records = [record for record in records if record not in coming]
        for record in records:
            home = Home(Path(record.sockets), self._places.logs(record.name))
            self.machines[record.name] = self._kept(record, home)
        for loss in lost:
            why = f"its record was unreadable ({loss.why}) and is now {loss.path}"
            log.error("machine %r: %s", loss.machine, why)
            self._events.tell(loss.machine, "record-lost", why)
        if not lost:
            await self.shelf.sweep()
        known = {path for kept in self.machines.values() for path in kept.sockets}
        complete = not await tell_strangers(self._places.runtime, known, self._events) and not lost
        members = {name: record.joined for record in records for name in record.members}
        networks = self._networks.open(self._places, members, complete=complete)
        try:
            async with networks, trio.open_nursery() as nursery:
                tasks = Tending(means, nursery)
                async with trio.open_nursery() as adopting:
                    for kept in self.machines.values():
                        adopting.start_soon(tasks.begin, kept, tasks.resumed(kept))
                entries = Entries(self.machines, self._kept, means, tasks)
                self._declaring = Declaring(entries, self._forgotten)
                self.receiving = Receiving(entries, self._arrivals)
                try:
                    yield
                finally:
                    tasks.end()
        except BaseExceptionGroup as group:
            raise_collapsed(group)

    async def ensure(self, wanted: Wanted, *, wait: bool) -> Kept:
        """See `Supervisor.ensure`."""
        return await self._declaring.ensure(wanted, wait=wait)

    async def declare(
        self, name: str, state: Declared, powerdown_grace: float | None = None
    ) -> Kept:
        """See `Supervisor.declare`."""
        return await self._declaring.declare(name, state, powerdown_grace)

    def layers_of(self, name: str) -> MachineSpec | None:
        """What is known of a machine's disks, also of one that is forgotten."""
        kept = self.machines.get(name)
        return self._forgotten.get(name) if kept is None else kept.spec

    async def forget_bare(self, name: str, snapshot: str) -> None:
        """A forgotten machine's snapshot of its RAM alone is deleted; JournalFailed."""
        await self._forgotten.without_bare(name, snapshot)

    def _kept(self, record: Record, home: Home) -> Kept:
        kept = Kept(record, home, self._events)
        kept.on_change = self._gate.notice
        self._gate.notice(kept)
        return kept

    async def amend(self, wanted: Wanted) -> Kept:
        """See `Supervisor.amend`."""
        kept = self.known(wanted.spec.name)
        async with kept.turn:
            await amend(kept, wanted, self._networks, self.journal)
        return kept

    @asynccontextmanager
    async def at_rest(self, name: str) -> AsyncIterator[AtRest]:
        """See `Supervisor.at_rest`."""
        kept = self.known(name)
        async with kept.turn, disks_at_rest(kept, self.journal, self.machines) as machine:
            yield machine

    async def revert(
        self, name: str, snapshot: str, *, memory: bool, rewinds: bool = False
    ) -> tuple[str, ...]:
        """See `Supervisor.revert`; who *rewinds* has saved it for the time being."""
        kept = self.known(name)
        async with kept.turn:
            if not rewinds:
                self.shelf.refuse_another(kept)
            return await revert(kept, snapshot, self.journal, self.machines, memory=memory)

    def _home(self, name: str) -> Home:
        return Home(self._places.sockets(name), self._places.logs(name))

    async def forget(self, name: str, *, disks: bool) -> None:
        """See `Supervisor.forget`."""
        kept = self.known(name)
        async with kept.turn:
            if kept.tended or kept.record.identity is not None:
                hint = f'declare({name!r}, "stopped"), or qmpkit stop, first'
                raise SpecInvalid([Fault("", "it is up, or about to be", hint)], whose(name))
            await finish_change(kept)
            if not disks:
                await self._forgotten.put(kept.spec)
            # A cancellation comes after it: else it could be off the record and still be here.
            with trio.move_on_after(STEP_GRACE, shield=True):
                await self._forget(kept)
            if not kept.is_forgotten:
                raise JournalFailed(str(self.journal.path), "the disk gives no answer")

    async def _forget(self, kept: Kept) -> None:
        """Off the record, and all that is left of it; only then is its name free."""
        await self._off_the_record(kept)
        kept.is_forgotten = True
        name = kept.name
        try:
            await self.shelf.clear(kept)
            self._events.tell(name, "forgotten", "it is declared no longer")
            try:
                await self._networks.drop(name, kept.record.joined)
                await self._networks.drop(second_of(name), ())
            except QmpkitError as error:  # who supervises next finds what is left, and nobody in it
                log.warning("of the networks of machine %r something is left: %s", name, error)
            await trio.to_thread.run_sync(discard, kept.home.logs)
        finally:
            self.machines.pop(name, None)

    async def _left(self, kept: Kept) -> None:
        """Off the record, as one that another supervisor has."""
        await self._off_the_record(kept)
        self.machines.pop(kept.name, None)

    async def _off_the_record(self, kept: Kept) -> None:
        """What has come of the move by which it came is remembered."""
        if kept.record.arrived:
            await self._arrivals.put(kept.record.arrived, "ran")
        await self.journal.remove(kept.name)

    def known(self, name: str) -> Kept:
        """The machine of that name; SpecInvalid when there is none."""
        return known_in(self.machines, name)
