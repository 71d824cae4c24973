"""Subscriptions: filtered, bounded, and nobody's trouble but their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpkit.qmp.errors import EventsLost, MonitorLost
from qmpkit.qmp.events import Event, EventHub, Subscription
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.testing.fake import FakeQemu, fake_qemu


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[FakeQemu, Session]]:
    async with fake_qemu() as fake, open_session(fake.dial(), name="vm") as qmp:
        yield fake, qmp


async def test_an_event_says_where_when_and_in_which_order() -> None:
    async with pair() as (fake, qmp):
        with qmp.subscribe("A") as events:
            fake.emit("OTHER")
            fake.send_raw(
                b'{"event": "A", "data": {"x": 1},'
                b' "timestamp": {"seconds": 17, "microseconds": 5}}\n'
            )
            fake.send_raw(b'{"event": "A", "timestamp": {"seconds": -1, "microseconds": -1}}\n')
            first, second = await events.next(), await events.next()
    assert (first.machine, first.name, first.data) == ("vm", "A", {"x": 1})
    assert first.time_ns == 17_000_005_000
    assert (second.data, second.time_ns) == ({}, None)
    assert (first.seq, second.seq) == (2, 3)
    assert 0 < first.monotonic <= second.monotonic


async def test_filters_by_name_and_data() -> None:
    async with pair() as (fake, qmp):
        with (
            qmp.subscribe("JOB", where={"id": "a"}) as job,
            qmp.subscribe("JOB", "STOP") as named,
            qmp.subscribe() as everything,
        ):
            fake.emit("JOB", {"id": "b"})
            fake.emit("JOB", {"status": "no id"})
            fake.emit("JOB", {"id": "a", "status": "running"})
            fake.emit("STOP")
            fake.emit("RESUME")
            await everything.wait_for(lambda event: event.name == "RESUME")
            assert _now(job) == ["JOB"]
            assert _now(named) == ["JOB", "JOB", "JOB", "STOP"]


def _now(subscription: object) -> list[str]:
    names = []
    while (event := subscription.next_nowait()) is not None:  # type: ignore[attr-defined]
        names.append(event.name)
    return names


async def test_a_fast_event_before_the_reply_is_not_missed() -> None:
    async with pair() as (_, qmp):
        with qmp.subscribe("RESUME") as events:
            await qmp.execute("cont")
            assert events.next_nowait() is not None


async def test_overflow_is_the_slow_subscribers_alone() -> None:
    async with pair() as (fake, qmp):
        with qmp.subscribe("A", buffer=3) as slow, qmp.subscribe("A") as fast:
            for n in range(5):
                fake.emit("A", {"n": n})
            assert [(await fast.next()).data["n"] for _ in range(5)] == [0, 1, 2, 3, 4]
            # What had come in time can still be read; then the loss is told, each time.
            assert [(await slow.next()).data["n"] for _ in range(3)] == [0, 1, 2]
            for _ in range(2):
                with pytest.raises(EventsLost) as lost:
                    await slow.next()
            assert (lost.value.names, lost.value.buffer) == (("A",), 3)
            with pytest.raises(EventsLost):
                slow.next_nowait()
        assert await qmp.execute("query-status")


async def test_a_subscription_collects_within_its_block_alone() -> None:
    hub = EventHub("vm")
    events = Subscription(hub, (), None, 1)
    with pytest.raises(RuntimeError, match=r"nothing is collected yet"):
        await events.next()
    with events:
        pass
    with pytest.raises(RuntimeError, match=r"entered once"):
        events.__enter__()
    with pytest.raises(ValueError, match=r"at least one event, not 0"):
        Subscription(hub, (), None, 0)


async def test_iteration_ends_with_the_streams_end_never_silently() -> None:
    async with pair() as (fake, qmp):
        seen = []
        with qmp.subscribe("A") as events:
            fake.emit("A")
            fake.hang_up()
            with pytest.raises(MonitorLost):
                async for event in events:
                    seen.append(event.name)
        assert seen == ["A"]


async def test_a_reader_that_waits_is_woken_by_leaving_the_block() -> None:
    async with pair() as (_, qmp), trio.open_nursery() as nursery:
        subscription = qmp.subscribe("A")

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await subscription.next()

        with subscription:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()


async def test_a_left_subscription_holds_nothing() -> None:
    async with pair() as (fake, qmp):
        with qmp.subscribe("A") as events:
            fake.emit("A")
        assert not any(qmp._events._by_name.values())
        with pytest.raises(trio.ClosedResourceError):
            await events.next()


async def test_a_cancelled_read_takes_no_event_with_it() -> None:
    async with pair() as (fake, qmp):
        with qmp.subscribe("A") as events:
            for steps in range(6):
                await _cancel_a_read(events, fake, steps)


async def _cancel_a_read(events: object, fake: FakeQemu, steps: int) -> None:
    got: list[Event] = []

    async def read(scope: trio.CancelScope) -> None:
        with scope:
            got.append(await events.next())  # type: ignore[attr-defined]

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(read, scope)
        fake.emit("A")
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()
    if not got:
        got.append(await events.next())  # type: ignore[attr-defined]
    assert len(got) == 1
    assert events.next_nowait() is None  # type: ignore[attr-defined]


async def test_several_readers_of_one_subscription_share_its_events() -> None:
    async with pair() as (fake, qmp):
        got: list[int] = []
        with qmp.subscribe("A") as events:

            async def read() -> None:
                got.append((await events.next()).data["n"])

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read)
                await wait_all_tasks_blocked()
                for n in range(1, 4):
                    fake.emit("A", {"n": n})
        assert sorted(got) == [1, 2, 3]


async def test_nothing_is_built_for_events_nobody_wants() -> None:
    hub = EventHub("vm")
    hub.publish({"event": "A", "timestamp": object()}, 1.0)
    assert hub.seq == 1
