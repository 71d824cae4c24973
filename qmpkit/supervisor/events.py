"""What happened to the machines of a supervisor, in one order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

import trio

from qmpkit.qmp.errors import EventsLost
from qmpkit.supervisor.chronicle import Chronicle
from qmpkit.supervisor.happening import Happening

__all__ = ["EventLog", "Happening", "Happenings"]

RING = 10_000
"""Happenings that are remembered for those who start in the past, without a disk."""


class EventLog:
    """Numbers happenings and hands them to every subscriber; never blocks the one who tells.

    *source* is whose they are, for messages.  *waits*: `keep` is to come, and the past with it.
    """

    def __init__(self, source: str, *, waits: bool = False) -> None:
        self.source = source
        self.waits_for = trio.Event() if waits else None
        self.closed = False
        self.ring: deque[Happening] = deque(maxlen=RING)
        self.chronicle: Chronicle | None = None
        self.next = 0
        self._subscribers: set[Happenings] = set()

    def keep(self, chronicle: Chronicle, first: int) -> None:
        """Write what happens from now on into *chronicle*, numbered from *first*."""
        self.chronicle, self.next = chronicle, first
        self.ring.clear()
        for subscriber in self._subscribers:
            subscriber._live = first
        if self.waits_for is not None:
            self.waits_for.set()

    def tell(self, machine: str, state: str, cause: str) -> None:
        """Record one happening."""
        happening = Happening(machine, self.next, time.time(), state, cause)
        self.next += 1
        self.ring.append(happening)
        if self.chronicle is not None:
            self.chronicle.write(happening)
        for subscriber in self._subscribers:
            subscriber._put(happening)

    async def before(self, moment: float) -> int:
        """The number of the last that happened before *moment*, seconds since the epoch."""
        await trio.lowlevel.checkpoint()
        earlier = [it.sequence for it in takewhile(lambda it: it.time < moment, self.ring)]
        if earlier or self.chronicle is None:
            return earlier[-1] if earlier else -1
        return await self.chronicle.before(moment)

    def close(self) -> None:
        """Nothing more will happen: iterations end when they have read what there is."""
        self.closed = True
        if self.waits_for is not None:
            self.waits_for.set()
        for subscriber in self._subscribers:
            subscriber._close()

    @contextmanager
    def subscribe(self, buffer: int, since: int | None = None) -> Iterator[Happenings]:
        """Follow what happens from now on, or what has after *since*, within the block."""
        subscriber = Happenings(buffer, self, since)
        self._subscribers.add(subscriber)
        if self.closed:
            subscriber._close()
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)
            subscriber._close()


class Happenings:
    """An async iterator over happenings, which ends with the supervisor.

    One that falls behind by more than its buffer can read what is in it, then gets
    EventsLost once, and goes on with what happens after that.  So does one that wants to
    begin in a past that is on record no longer.
    """

    def __init__(self, buffer: int, events: EventLog, since: int | None) -> None:
        self._events = events
        self._buffer = max(buffer, 1)
        self._send, self._receive = trio.open_memory_channel[Happening](self._buffer)
        self._overflowed = False
        self._since = since
        self._live = events.next  # from here on they come by the channel
        self._past: deque[Happening] = deque()

    def __aiter__(self) -> Happenings:
        return self

    async def __anext__(self) -> Happening:
        if (happening := await self.past()) is not None:
            return happening
        if self._overflowed and not self._receive.statistics().current_buffer_used:
            self._overflowed = False
            raise self._lost()
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def past(self) -> Happening | None:
        """The next one from before this iterator began; None when there is none any more.

        Raises EventsLost as the iteration does.
        """
        await trio.lowlevel.checkpoint()
        if self._since is not None and self._events.waits_for is not None:
            await self._events.waits_for.wait()
        while self._since is not None and not self._past:
            await self._look_back()
        return self._past.popleft() if self._past else None

    async def _look_back(self) -> None:
        """Read the next part of the past, from the disk as long as memory does not have it."""
        assert self._since is not None
        page = [it for it in self._events.ring if self._since < it.sequence < self._live]
        oldest = self._events.ring[0].sequence if self._events.ring else self._live
        chronicle = self._events.chronicle
        if chronicle is not None and self._since + 1 < min(oldest, self._live):
            found = await chronicle.pages(self._since, min(oldest, self._live))
            if found is None:
                self._since = await chronicle.oldest() - 1
                raise self._lost()
            page = list(found) or page
        self._since = page[-1].sequence if page else None
        self._past.extend(page)

    def _lost(self) -> EventsLost:
        return EventsLost("", (), self._buffer, source=self._events.source)

    def _put(self, happening: Happening) -> None:
        if self._overflowed:
            return  # the reader is to learn of the gap where it is
        try:
            self._send.send_nowait(happening)
        except trio.WouldBlock:
            self._overflowed = True

    def _close(self) -> None:
        self._send.close()
