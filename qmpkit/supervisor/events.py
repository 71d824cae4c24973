"""What happened to the machines of a supervisor, in one order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import attrs
import trio

from qmpkit.qmp.errors import EventsLost

__all__ = ["EventLog", "Happening", "Happenings"]


@attrs.frozen
class Happening:
    """One change of one machine.

    `sequence` orders the happenings of a supervisor without gaps, `time` is seconds
    since the epoch, `state` what the machine became ("queued", "starting", then the
    states of `qmpkit.machine.state.State`, or "failed" for a start that did not
    succeed), `cause` why.
    """

    machine: str
    sequence: int
    time: float
    state: str
    cause: str


class EventLog:
    """Numbers happenings and hands them to every subscriber; never blocks the one who tells.

    *source* is whose they are, for messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.closed = False
        self._numbers = count()
        self._subscribers: set[Happenings] = set()

    def tell(self, machine: str, state: str, cause: str) -> None:
        """Record one happening."""
        happening = Happening(machine, next(self._numbers), time.time(), state, cause)
        for subscriber in self._subscribers:
            subscriber._put(happening)

    def close(self) -> None:
        """Nothing more will happen: iterations end when they have read what there is."""
        self.closed = True
        for subscriber in self._subscribers:
            subscriber._close()

    @contextmanager
    def subscribe(self, buffer: int) -> Iterator[Happenings]:
        """Follow what happens from now on, within the block."""
        subscriber = Happenings(buffer, self.source)
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
    EventsLost once, and goes on with what happens after that.
    """

    def __init__(self, buffer: int, source: str) -> None:
        self._source = source
        self._buffer = max(buffer, 1)
        self._send, self._receive = trio.open_memory_channel[Happening](self._buffer)
        self._overflowed = False

    def __aiter__(self) -> Happenings:
        return self

    async def __anext__(self) -> Happening:
        if self._overflowed and not self._receive.statistics().current_buffer_used:
            self._overflowed = False
            raise EventsLost("", (), self._buffer, source=self._source)
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def _put(self, happening: Happening) -> None:
        if self._overflowed:
            return  # the reader is to learn of the gap where it is
        try:
            self._send.send_nowait(happening)
        except trio.WouldBlock:
            self._overflowed = True

    def _close(self) -> None:
        self._send.close()
