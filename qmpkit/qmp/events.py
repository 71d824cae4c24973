"""Events, and bounded subscriptions to them.

Publishing never blocks and never runs a subscriber's code: a subscriber that
falls behind loses its own subscription, and nothing else happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any

import attrs
import trio

from qmpkit.qmp.errors import EventsLost, MonitorLost
from qmpkit.qmp.wire import NotAMessage

__all__ = ["Event", "EventHub", "Subscription"]

_NO_DATA: dict[str, Any] = {}


@attrs.frozen
class Event:
    """One QMP event.

    `machine` is the session's name.  `time_ns` is QEMU's own wall clock in
    nanoseconds since 1970, None when QEMU could not read it; `monotonic` is our
    `time.monotonic()` at receipt, in seconds; `seq` counts every event of the
    session from 1, so that a gap seen by a filtered subscriber is no loss.
    """

    machine: str
    name: str
    data: Mapping[str, Any]
    time_ns: int | None
    monotonic: float
    seq: int


class Subscription:
    """Events of some names, in order, kept from the moment the `with` block is entered.

    Made by `Session.subscribe`.  Reading: `async for event in subscription`,
    `await next()` or `await wait_for(...)`.  When the buffer overflows, what is in
    it can still be read, then every read raises `EventsLost`.  When the session
    ends, the same holds with `MonitorLost`; after the block, with
    `trio.ClosedResourceError`.  So an iteration never ends silently.

    `explain`, when set, is awaited with that `MonitorLost` and may raise what is behind it.
    """

    def __init__(
        self, hub: EventHub, names: tuple[str, ...], where: Mapping[str, Any] | None, buffer: int
    ) -> None:
        self.names = names
        self._hub = hub
        self._where = tuple((where or {}).items())
        self._limit = buffer
        self._events: deque[Event] = deque()
        self._readers = trio.lowlevel.ParkingLot()
        if buffer < 1:
            raise ValueError(f"a subscription keeps at least one event, not {buffer}")
        self._closed: Callable[[], Exception] | None = _not_entered
        self.explain: Callable[[MonitorLost], Awaitable[None]] | None = None

    def __enter__(self) -> Subscription:
        if self._closed is not _not_entered:
            raise RuntimeError("a subscription is entered once: make another")
        self._hub._enter(self)
        self._closed = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._events.clear()
        self._close(_left)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        return await self.next()

    async def next(self) -> Event:
        """The next event; waits for it.  A cancelled call takes no event with it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while not self._events:
            if self._closed is not None:
                raise await self._reason(self._closed())
            await self._readers.park()
            waited = True
        event = self._events.popleft()
        if not waited:  # always let others run, even when events pour in
            await trio.lowlevel.cancel_shielded_checkpoint()
        return event

    @property
    def has_news(self) -> bool:
        """Whether an event has arrived that nobody has read."""
        return bool(self._events)

    def next_nowait(self) -> Event | None:
        """The next event that has already arrived, or None.  Raises as `next` does."""
        if self._events:
            return self._events.popleft()
        if self._closed is not None:
            raise self._closed()
        return None

    async def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        """Read up to the first event for which *wanted* is true, and return that one."""
        while True:
            event = await self.next()
            if wanted(event):
                return event

    async def _reason(self, error: Exception) -> Exception:
        if self.explain is not None and isinstance(error, MonitorLost):
            await self.explain(error)
        return error

    def _matches(self, data: Mapping[str, Any]) -> bool:
        return all(key in data and data[key] == value for key, value in self._where)

    def _offer(self, event: Event) -> None:
        if self._where and not self._matches(event.data):
            return
        if len(self._events) >= self._limit:
            self._close(lambda: EventsLost(event.machine, self.names, self._limit))
            return
        self._events.append(event)
        if self._readers:
            self._readers.unpark()

    def _close(self, reason: Callable[[], Exception]) -> None:
        if self._closed is None or reason is _left:
            self._closed = reason
        self._hub._leave(self)
        self._readers.unpark_all()


def _not_entered() -> Exception:
    return RuntimeError("nothing is collected yet: `with ….subscribe(…) as events:`")


def _left() -> Exception:
    return trio.ClosedResourceError("the subscription's block has been left")


class EventHub:
    """Hands each event to those who asked for it."""

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._by_name: dict[str, dict[Subscription, None]] = {}
        self._to_all: dict[Subscription, None] = {}
        self._ended: Callable[[], Exception] | None = None
        self.seq = 0

    def publish(self, message: Mapping[str, Any], monotonic: float) -> None:
        """Give one event message to its subscribers; never blocks.

        Raises `NotAMessage` when it has not the shape of an event.
        """
        name, data = message["event"], message.get("data", _NO_DATA)
        if type(name) is not str or type(data) is not dict:
            raise NotAMessage("an event without a name, or whose data is no object")
        self.seq += 1
        takers = [*self._by_name.get(name, ()), *self._to_all]
        if not takers:
            return
        event = Event(
            machine=self._machine,
            name=name,
            data=data,
            time_ns=_time_ns(message.get("timestamp")),
            monotonic=monotonic,
            seq=self.seq,
        )
        for subscription in takers:
            subscription._offer(event)

    def end(self, reason: Callable[[], Exception]) -> None:
        """No event will come any more: subscribers read what they have, then get *reason*."""
        self._ended = reason
        for group in [*self._by_name.values(), self._to_all]:
            for subscription in list(group):
                subscription._close(reason)

    def _groups(self, subscription: Subscription) -> list[dict[Subscription, None]]:
        if not subscription.names:
            return [self._to_all]
        return [self._by_name.setdefault(name, {}) for name in subscription.names]

    def _enter(self, subscription: Subscription) -> None:
        if self._ended is not None:
            raise self._ended()
        for group in self._groups(subscription):
            group[subscription] = None

    def _leave(self, subscription: Subscription) -> None:
        for group in self._groups(subscription):
            group.pop(subscription, None)


def _time_ns(stamp: object) -> int | None:
    """QEMU's timestamp in nanoseconds; it sends -1 for a clock it could not read."""
    match stamp:
        case {"seconds": int(seconds), "microseconds": int(micro)} if seconds >= 0 <= micro:
            return seconds * 1_000_000_000 + micro * 1000
    return None
