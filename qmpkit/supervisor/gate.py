"""The gate that every kept machine's start goes through: its order, and room on the host.

Decisions are those of the pure modules `order` and `admission`; here they are asked anew
whenever something has happened that may change them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from itertools import islice

import attrs
import trio

from qmpkit.errors import HostLacks
from qmpkit.machine.state import State
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.admission import TURN, Admission, Demand, Host, Limits, Waiting, admit
from qmpkit.supervisor.errors import StartBlocked, StartCalledOff
from qmpkit.supervisor.health import Healthy, Unhealthy
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.order import (
    Needs,
    Ready,
    Seen,
    Standing,
    in_circles,
    ready_to_start,
    start_order,
)
from qmpkit.supervisor.room import demand_of, host_now

__all__ = ["Gate", "needs_of", "standing_of"]

LOOK_EVERY = 2.0
"""Seconds between two looks at the host's memory, which tells nobody when it gets free."""

AHEAD = 16
"""Machines at the head of the queue that a look decides on, when those wait for turns alone."""

_RUNS = (State.RUNNING.value, State.SUSPENDED.value)


@attrs.define(eq=False)
class _Ticket:
    """One machine that is to start."""

    kept: Kept
    demand: Demand
    waiting: Waiting
    blocked: str = ""
    never: str = ""
    admitted: bool = False
    changed: trio.Event = attrs.field(factory=trio.Event)

    def decide(self, *, admitted: bool, blocked: str, never: str) -> None:
        """Note what was decided about it, and wake who waits for that when it is news."""
        before = (self.admitted, self.blocked, self.never)
        self.admitted, self.blocked, self.never = admitted, blocked, never
        if before != (admitted, blocked, never):
            self.wake()

    def wake(self) -> None:
        """Have whoever waits look."""
        self.changed.set()
        self.changed = trio.Event()


class Gate:
    """Lets *starts* machines start at the same time, each when its turn has come.

    *machines* are all that the supervisor keeps.  `run` is its service.
    """

    def __init__(
        self,
        machines: Mapping[str, Kept],
        *,
        starts: int,
        host: Callable[[Collection[int]], Host] | None = None,
    ) -> None:
        self._machines = machines
        self._limits = Limits(starts=starts)
        self._host = host or host_now
        self._queue: dict[str, _Ticket] = {}  # in the order of arrival
        self._starting: dict[str, _Ticket] = {}
        self._running: dict[str, Demand] = {}
        self._specs: dict[str, MachineSpec] = {}  # that those were found from
        self._wake = trio.Event()
        self._short_of_room = False
        self._in_order = False

    def notice(self, kept: Kept) -> None:
        """Something has happened to *kept*: look again soon, if that may decide anything."""
        self._count(kept)
        if kept.declared == "stopped" and (ticket := self._queue.get(kept.name)):
            ticket.wake()
        # With many in the queue a look is dear, and most of what happens frees nobody.
        if self._overtaking:
            self._wake.set()

    async def run(self) -> None:
        """Look whenever something has happened."""
        while True:
            with trio.move_on_after(LOOK_EVERY if self._short_of_room else float("inf")):
                await self._wake.wait()
            self._wake = trio.Event()
            self.look()

    @asynccontextmanager
    async def turn(self, kept: Kept, *, patient: bool) -> AsyncIterator[None]:
        """Wait until *kept* may start, which it does within the block.

        Raises StartCalledOff when it is declared stopped meanwhile, HostLacks when it is
        too big for this host; unless *patient*, StartBlocked when it waits for what will
        not come by itself.
        """
        demand = demand_of(kept.spec)
        ticket = _Ticket(kept, demand, Waiting(kept.name, demand))
        self._queue[kept.name] = ticket
        try:
            self._wake.set()  # one look for all that come at the same time
            await self._admitted(ticket, patient)
            yield
        finally:
            self._queue.pop(kept.name, None)
            self._starting.pop(kept.name, None)
            self._count(kept)
            self._wake.set()

    async def _admitted(self, ticket: _Ticket, patient: bool) -> None:
        kept = ticket.kept
        await trio.lowlevel.checkpoint()
        while not ticket.admitted:
            if kept.declared == "stopped":
                raise StartCalledOff(kept.name)
            if ticket.never:
                what = f"machine {kept.name!r} does not fit on this host: {ticket.never}"
                raise HostLacks(what, "give it less")
            if ticket.blocked and not patient:
                raise StartBlocked(kept.name, ticket.blocked)
            await ticket.changed.wait()

    def look(self) -> None:
        """Decide on those that wait, now: on the first, or on all when some may overtake."""
        if not self._overtaking:
            self._decide(dict(islice(self._queue.items(), AHEAD)))
        if self._overtaking:
            self._decide(dict(self._queue))

    @property
    def _overtaking(self) -> bool:
        return self._short_of_room or self._in_order

    def _decide(self, waiting: Mapping[str, _Ticket]) -> None:
        if not waiting:
            self._short_of_room = self._in_order = False
            return
        ready = self._ready(waiting)
        admission = self._admission(waiting, ready)
        self._short_of_room = any(not why.startswith(TURN) for why in {*admission.waits.values()})
        self._in_order = bool(ready.waits or ready.blocked)
        by_name = {item.name: item for item in admission.queue}
        for name, ticket in waiting.items():
            ticket.waiting = by_name.get(name, ticket.waiting)
            if name in admission.now:
                self._starting[name] = self._queue.pop(name)
            ticket.decide(
                admitted=name in admission.now,
                blocked=ready.blocked.get(name, ""),
                never=admission.never.get(name, ""),
            )
            if ticket.blocked:
                ticket.kept.explain("blocked", ticket.blocked)
            elif why := ready.waits.get(name) or admission.waits.get(name):
                ticket.kept.explain("queued", f"it waits for {why}")

    def _count(self, kept: Kept) -> None:
        """Have *kept* among those that run, when it does: to look at all of them is dear."""
        if kept.record.identity is None or kept.name in self._queue or kept.name in self._starting:
            self._running.pop(kept.name, None)
            self._specs.pop(kept.name, None)
        elif self._specs.get(kept.name) is not kept.spec:
            self._specs[kept.name] = kept.spec
            self._running[kept.name] = demand_of(kept.spec)

    def _ready(self, waiting: Mapping[str, _Ticket]) -> Ready:
        if not any(t.kept.record.after or t.kept.record.requires for t in waiting.values()):
            return Ready(tuple(waiting), {}, {})
        seen = {
            name: standing_of(kept, waits=name in self._queue)
            for name, kept in self._machines.items()
        }
        needs = {
            name: needs_of(kept, self._machines) if name in self._queue else Needs()
            for name, kept in self._machines.items()
        }
        for strange in {other for it in needs.values() for other in it.requires} - seen.keys():
            needs[strange] = Needs()
            seen[strange] = Seen(Standing.DOWN, "there is no such machine")
        # Refused where it is declared; but of two at the same time neither knows the other.
        stuck: dict[str, str] = {}
        while circles := in_circles(needs):
            stuck |= circles
            needs |= dict.fromkeys(circles, Needs())
            seen |= {name: Seen(Standing.FAILED, why) for name, why in circles.items()}
        ready = ready_to_start(start_order(needs), needs, seen)
        return attrs.evolve(ready, blocked={**stuck, **ready.blocked})

    def _admission(self, waiting: Mapping[str, _Ticket], ready: Ready) -> Admission:
        now = set(ready.now)
        queue = [ticket.waiting for name, ticket in waiting.items() if name in now]
        starting = {name: ticket.demand for name, ticket in self._starting.items()}
        pages = {it.demand.page_size for it in queue if it.demand.huge_pages}
        try:
            host = self._host(pages)
        except OSError as error:  # no descriptor is left to read by: none for a start either
            why = f"a look at what this host has: {error.strerror or error}"
            return Admission((), tuple(queue), {waiting.name: why for waiting in queue}, {})
        return admit(host, self._running, starting, queue, self._limits)


def needs_of(kept: Kept, known: Mapping[str, Kept]) -> Needs:
    """What a machine comes after and cannot do without; to come after nobody is no order."""
    record = kept.record
    after = tuple(name for name in record.after if name in known)
    return Needs(after=after, requires=record.requires)


def standing_of(kept: Kept, *, waits: bool) -> Seen:
    """How a machine stands to those that come after it.  Pure.

    One with checks is up when it is healthy.  *waits*: at the gate.
    """
    if kept.declared == "stopped":
        return Seen(Standing.STOPPING if kept.tended else Standing.DOWN)
    if waits:
        return Seen(Standing.WANTED)
    if not kept.tended:
        return Seen(Standing.FAILED, kept.cause)
    if isinstance(kept.health, Unhealthy):
        return Seen(Standing.STARTING, f"unhealthy: {kept.health.why}")
    paused = kept.state == State.PAUSED.value and kept.declared == "paused"
    if paused or kept.state in _RUNS:
        if kept.record.health is None or isinstance(kept.health, Healthy) or paused:
            return Seen(Standing.UP)
        return Seen(Standing.STARTING, kept.health.why if kept.health else "")
    return Seen(Standing.STARTING)
