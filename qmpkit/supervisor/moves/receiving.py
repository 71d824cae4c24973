"""A supervisor's side of a move to it: a machine is offered, comes, and is kept.

Nothing that the peer says is trusted, and nothing of it stays unless it is told to run: then
it is on record first.  Its process outlives us from the moment on in which the record says
that it is `arriving`; whoever supervises next ends it then.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, HostLacks, LaunchFailed, QmpkitError, SpecInvalid
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.machine.keep import Home, KeptStart, begun
from qmpkit.machine.ledger import Change
from qmpkit.machine.machine import Machine
from qmpkit.operations.block.layers import INODE
from qmpkit.operations.migration.compatibility import missing_files
from qmpkit.operations.migration.errors import MigrationFailed, destination_starts, no_qemu
from qmpkit.operations.migration.incoming import Incoming, start_form
from qmpkit.operations.migration.local_end import LocalEnd
from qmpkit.operations.migration.remote_rest import COMING
from qmpkit.operations.migration.storage_there import (
    NewImages,
    new_images,
    place_faults,
    room_fault,
    thread_faults,
)
from qmpkit.operations.migration.wire import PROTOCOL, Wire, WireLost, error_of
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.tune.live import take_place
from qmpkit.process.places import discard
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.entries import Entries
from qmpkit.supervisor.errors import StartBlocked
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.moves.arrivals import Arrivals, Outcome
from qmpkit.supervisor.moves.arriving import Arriving
from qmpkit.supervisor.moves.conversation import next_asked
from qmpkit.supervisor.moves.offer import Offer, file_faults, offer_from_dict
from qmpkit.supervisor.moves.terms import ReceiveTerms, bounded, terms_faults
from qmpkit.supervisor.record import Record

__all__ = ["Receiving"]

log = logging.getLogger("qmpkit.supervisor")

HELLO = 10.0
"""Seconds that a peer has to say who it is."""

_SETTLED = 60.0
_MOMENTS = 5.0
_ROOM = 20.0  # seconds; its source has more patience


@attrs.frozen(eq=False)
class _Coming:
    """One move to us that is under way, and `over` once nothing of it is, or it runs here."""

    name: str
    scope: trio.CancelScope
    over: trio.Event = attrs.field(factory=trio.Event)


class Receiving:
    """Takes machines of other supervisors in, among those of *entries*."""

    def __init__(self, entries: Entries, arrivals: Arrivals) -> None:
        self._entries = entries
        self._machines = entries.machines
        self._means = entries.means
        self._tasks = entries.tasks
        self._arrivals = arrivals
        self._coming: dict[str, _Coming] = {}

    async def receive(self, stream: trio.abc.Stream, terms: ReceiveTerms | None) -> str | None:
        """See `Supervisor.receive`."""
        wire = Wire(stream)
        try:
            return await self._converse(wire, terms)
        except WireLost as lost:
            log.info("a supervisor that spoke to us: %s", lost)
            return None
        finally:
            await trio.aclose_forcefully(stream)

    async def _converse(self, wire: Wire, terms: ReceiveTerms | None) -> str | None:
        asked = await next_asked(wire, HELLO)
        if terms is None and "terms" in asked:  # of a command of our own user's
            terms = _terms(asked["terms"])
            await wire.send({"ok": {}})
            asked = await next_asked(wire, HELLO)
        if asked.get("ask") != "hello" or asked.get("protocol") != PROTOCOL:
            await wire.send({"ok": {"protocol": PROTOCOL}})
            raise WireLost(f"it does not speak conversation {PROTOCOL}")
        await wire.send({"ok": {"protocol": PROTOCOL}})
        asked = await next_asked(wire, HELLO)
        if asked.get("ask") not in ("offer", "settle", "rest"):
            raise WireLost(f"it offers nothing, but asks {asked.get('ask')!r:.50}")
        try:
            if asked.get("ask") == "settle":
                outcome = await self.outcome(str(asked.get("id")))
                await wire.send({"ok": {"outcome": outcome, "who": await self._arrivals.who()}})
                return None
            if asked.get("ask") == "rest":
                await self._rejoined(wire, str(asked.get("id")))
                return None
            return await self._take_in(wire, asked.get("offer"), terms)
        except WireLost:
            raise
        except Exception as error:
            if not isinstance(error, QmpkitError):
                log.exception("a machine that was offered")
            await wire.send({"error": error_of(error)})
            return None

    async def _rejoined(self, wire: Wire, ident: str) -> None:
        """The source of a guest whose memory follows, or one of another end, asks by its number."""
        if (coming := self._arrivals.coming.get(ident)) is None:
            outcome: str = await self.outcome(ident)
            await wire.send({"ok": {"outcome": outcome, "who": await self._arrivals.who()}})
            return
        await wire.send({"ok": {"outcome": COMING, "who": await self._arrivals.who()}})
        await coming.converse(wire)

    async def outcome(self, ident: str) -> Outcome:
        """What has come of a move; one that is under way comes to its end first.

        After "discarded" it is never run here.
        """
        if self._arrivals.get(ident) == "lost":
            return "lost"
        if (follows := self._arrivals.coming.get(ident)) is not None:
            with trio.move_on_after(_SETTLED):
                await follows.settled()
        elif (coming := self._coming.get(ident)) is not None:
            coming.scope.cancel()
            with trio.move_on_after(_SETTLED) as waiting:
                await coming.over.wait()
            if waiting.cancelled_caught:
                raise WireLost("a move that it asks about comes to no end")
        if any(kept.record.arrived == ident for kept in self._machines.values()):
            return "runs"
        match self._arrivals.get(ident):
            case "ran":
                return "ran"
            case "ended":
                return "ended"
        return "discarded"

    async def _take_in(self, wire: Wire, plain: object, terms: ReceiveTerms | None) -> str | None:
        offer = offer_from_dict(plain)
        name = offer.spec.name
        await self._one_before(name)
        resolution, spec = await self._form(offer, terms)
        if name in self._machines or offer.id in self._coming:  # meanwhile
            raise SpecInvalid([_taken(name)])
        home = self._means.home(name)
        kept = self._entries.make(_record(offer, spec, home, resolution), home)
        with trio.CancelScope() as scope:
            self._coming[offer.id] = coming = _Coming(name, scope)
            try:
                self._machines[name] = kept  # the name is taken from here on
                async with kept.turn:
                    await self._until_it_runs(wire, kept, resolution, offer, terms)
            finally:
                try:
                    with trio.move_on_after(STEP_GRACE, shield=True):
                        await self._settled(kept)
                finally:
                    del self._coming[offer.id]
                    coming.over.set()
        if kept.record.arrived:
            return name
        if scope.cancelled_caught:
            raise MigrationFailed(name, "its source has asked anew what came of it")
        return None

    async def _one_before(self, name: str) -> None:
        """Let another that comes by this name come to its end, should it be about to."""
        for coming in [it for it in self._coming.values() if it.name == name]:
            with trio.move_on_after(_MOMENTS):
                await coming.over.wait()

    async def _form(
        self, offer: Offer, terms: ReceiveTerms | None
    ) -> tuple[Resolution, MachineSpec]:
        """What it is started as, and what it is then; SpecInvalid with all that is in the way."""
        spec, name = offer.spec, offer.spec.name
        faults = [_taken(name)] if name in self._machines else []
        faults += [
            Fault("requires", f"there is no machine {other!r} here", "have it here first")
            for other in offer.requires
            if other not in self._machines
        ]
        if terms is not None:
            foreign = await trio.to_thread.run_sync(terms_faults, spec, terms, offer.moves)
            if foreign:
                raise SpecInvalid([*faults, *foreign])  # nothing else of it is looked at, or run
            offer = attrs.evolve(offer, spec=bounded(spec, terms))
        faults += await trio.to_thread.run_sync(lambda: [*_file_faults(offer)])
        try:
            resolution = await _resolved(offer)
            faults += thread_faults(offer.moves, resolution.capabilities.version)
        except SpecInvalid as invalid:
            raise SpecInvalid([*faults, *invalid.faults]) from invalid
        except HostLacks as lacks:
            raise SpecInvalid([*faults, Fault("", lacks.what, lacks.cure)]) from lacks
        except LaunchFailed as failed:
            raise SpecInvalid([*faults, no_qemu(failed)]) from failed
        if faults:
            raise SpecInvalid(faults)
        wanted = attrs.evolve(resolution.spec, nics=spec.nics, vmgenid=spec.vmgenid)
        return resolution, wanted

    async def _until_it_runs(
        self,
        wire: Wire,
        kept: Kept,
        resolution: Resolution,
        offer: Offer,
        terms: ReceiveTerms | None,
    ) -> None:
        async with AsyncExitStack() as stack:
            images = await stack.enter_async_context(self._new_images(kept, offer, terms))
            if offer.moves:  # an encrypted one is opened by the secrets of its bases, too
                resolution = await _resolved(offer)
                kept.note(facts=resolution.facts)
            start, machine = await stack.enter_async_context(self._begun(kept, resolution))
            await self._put_on_record(kept, start)
            end = LocalEnd(Incoming(machine, kept.spec, moves=offer.moves, images=images))
            with end.watched():
                who = await self._arrivals.who()
                able = attrs.asdict(await end.able(words=True))
                able |= {key: [*able[key]] for key in ("capabilities", "parameters")}  # by name
                await wire.send({"ok": {**able, "who": who}})
                coming = Arriving(wire, kept, machine, end, terms, self._means, self._arrivals)
                await coming.served()

    @asynccontextmanager
    async def _new_images(
        self, kept: Kept, offer: Offer, terms: ReceiveTerms | None
    ) -> AsyncIterator[NewImages]:
        """Those of the disks that go along, on record before they are made."""
        files = tuple(move.disk.file for move in offer.moves)
        change = Change(what="come here", spec=kept.spec, begun=kept.spec, files=files)
        if files:
            kept.note(change=change)
            await self._written(kept)
        async with new_images(offer.moves, None if terms is None else terms.allow) as images:
            if files:
                inodes = tuple(it.stamp[INODE] for it in images.placed)
                kept.note(change=attrs.evolve(change, inodes=inodes))
            yield images

    @asynccontextmanager
    async def _begun(
        self, kept: Kept, resolution: Resolution
    ) -> AsyncIterator[tuple[KeptStart, Machine]]:
        means, home = self._means, kept.home
        options = attrs.evolve(means.options, incoming=True)
        async with AsyncExitStack() as stack:
            starting = means.ground.start(
                resolution, home, {}, trio.lowlevel.checkpoint, incoming=True
            )
            async with AsyncExitStack() as turn:
                await self._admitted(kept, turn)
                with destination_starts(kept.name):
                    start = await stack.enter_async_context(starting)
                    begins = begun(resolution, start, home, options)
                    machine = await stack.enter_async_context(begins)
            try:
                await take_place(machine)
                yield start, machine
            finally:
                if not (kept.record.arrived or kept.is_left):  # it has come to nothing
                    with trio.move_on_after(STEP_GRACE, shield=True):
                        await machine.kill()

    async def _admitted(self, kept: Kept, turn: AsyncExitStack) -> None:
        """It starts when its turn has come, as others do; SpecInvalid when there is no room."""
        with trio.move_on_after(_ROOM):
            try:
                await turn.enter_async_context(self._means.gate.turn(kept, patient=False))
            except (HostLacks, StartBlocked) as lacks:
                raise SpecInvalid([Fault("", str(lacks))]) from lacks
            return
        message = f"it waits for more than {_ROOM:g} s: {kept.cause}"
        raise SpecInvalid([Fault("", message, "stop others there, or give it less")])

    async def _put_on_record(self, kept: Kept, start: KeptStart) -> None:
        """From here on whoever supervises next knows of it, and would end it."""
        kept.note(identity=start.child.identity, argv=start.argv)
        kept.enter("arriving", "another supervisor sends it")
        await self._written(kept)
        if not await start.keep():
            raise MigrationFailed(kept.name, "the destination's QEMU has ended")

    async def _written(self, kept: Kept) -> None:
        if not await kept.write(self._means.journal):
            assert kept.not_durable is not None
            raise kept.not_durable

    async def _settled(self, kept: Kept) -> None:
        """What runs here is looked after; of anything else nothing is left."""
        if kept.is_left:
            return
        if kept.record.arrived:
            await self._tasks.begin(kept, self._tasks.resumed(kept))
            return
        try:
            for folder in (kept.home.sockets, kept.home.logs):
                await trio.to_thread.run_sync(discard, folder)
            with suppress(QmpkitError):
                await self._means.journal.remove(kept.name)
        finally:  # the next one of its name has the same places
            if self._machines.get(kept.name) is kept:
                del self._machines[kept.name]
            kept.tended = False
            kept.notify()
        if kept.record.identity is not None:
            kept.tell("discarded", "it has not moved here")


def _file_faults(offer: Offer) -> Iterator[Fault]:
    """What is wrong with its files, here.  Blocking."""
    spec, moves = offer.spec, offer.moves
    yield from missing_files(spec, {move.id for move in moves})
    yield from file_faults(spec)
    yield from place_faults(moves)
    if (lacks := room_fault(moves)) is not None:
        yield Fault("disks", lacks.what, lacks.cure)


async def _resolved(offer: Offer) -> Resolution:
    return await resolve(start_form(offer.spec, generation=offer.generation), check=False)


def _record(offer: Offer, spec: MachineSpec, home: Home, resolution: Resolution) -> Record:
    return Record(
        name=spec.name,
        declared=offer.declared,
        spec=spec,
        asked=offer.asked,
        restart=offer.restart,
        sockets=os.fspath(home.sockets),
        health=offer.health,
        after=offer.after,
        requires=offer.requires,
        facts=resolution.facts,
        arriving=offer.id,
        time=time.time(),
    )


def _taken(name: str) -> Fault:
    return Fault("name", f"there is a machine {name!r} here", "rename one of the two")


def _terms(plain: object) -> ReceiveTerms:
    try:
        if isinstance(plain, Mapping):
            known: dict[str, Any] = {key: plain[key] for key in ("address", "tls", "allow")}
            return ReceiveTerms(**known)
    except (KeyError, TypeError, ValueError) as error:
        raise WireLost(f"terms that make no sense: {error}") from error
    raise WireLost("terms that make no sense")
