"""One order for everything that happens, for each subscriber at its own speed."""

from __future__ import annotations

import time

import pytest
import trio
import trio.testing

from qmpkit.qmp.errors import EventsLost
from qmpkit.supervisor.events import EventLog, Happening
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_machine import FakeHost
from tests.unit.supervisor.conftest import spec


async def test_the_merged_stream_has_one_order(host: FakeHost) -> None:
    before = time.time()
    lab = Supervisor(start=host.start)
    with lab.subscribe() as happenings:
        async with lab:
            async with trio.open_nursery() as nursery:
                for name in ("a", "b"):
                    nursery.start_soon(lab.start, spec(name))
            vm = lab.machines["a"]
            host["a"].process.end(11)
            await vm.wait()
        seen = [happening async for happening in happenings]  # ends with the supervisor
    assert [happening.sequence for happening in seen] == list(range(len(seen)))
    assert all(before <= happening.time <= time.time() for happening in seen)
    assert _states(seen, "a") == ["queued", "starting", "paused", "running", "gone"]
    assert _states(seen, "b") == ["queued", "starting", "paused", "running", "shutdown", "gone"]
    causes = {(it.machine, it.state): it.cause for it in seen}
    assert causes["b", "running"] == "RESUME"
    assert causes["b", "shutdown"] == "host-qmp-quit"
    assert causes["a", "gone"].startswith("QEMU crashed (exit status 11) after ")


def _states(seen: list[Happening], machine: str) -> list[str]:
    return [happening.state for happening in seen if happening.machine == machine]


async def test_two_subscribers_see_the_same() -> None:
    log = EventLog("supervisor 'lab'")
    with log.subscribe(10) as one, log.subscribe(10) as other:
        log.tell("a", "running", "RESUME")
        log.close()
        assert [it async for it in one] == [it async for it in other] != []


async def test_a_subscriber_waits_for_what_comes() -> None:
    log = EventLog("supervisor 'lab'")
    with log.subscribe(10) as happenings:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert (await anext(happenings)).machine == "a"

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            log.tell("a", "running", "RESUME")


async def test_who_is_too_slow_is_told_where_the_gap_is() -> None:
    log = EventLog("supervisor 'lab'")
    with log.subscribe(3) as slow, log.subscribe(100) as quick:
        for number in range(5):
            log.tell(f"vm{number}", "running", "RESUME")
        assert (await anext(slow)).sequence == 0
        log.tell("vm5", "running", "RESUME")  # there is room again, but the gap comes first
        assert [(await anext(slow)).sequence for _ in range(2)] == [1, 2]
        with pytest.raises(EventsLost) as caught:
            await anext(slow)
        assert str(caught.value) == (
            "supervisor 'lab': a subscriber of all events fell more than 3 events behind."
            " Cure: read faster or subscribe with a larger buffer"
        )
        log.tell("vm6", "running", "RESUME")
        assert (await anext(slow)).sequence == 6
        assert [(await anext(quick)).sequence for _ in range(7)] == list(range(7))


async def test_an_iteration_ends_with_its_block_and_with_the_log() -> None:
    log = EventLog("supervisor 'lab'")
    with log.subscribe(3) as happenings:
        pass
    assert [it async for it in happenings] == []
    log.close()
    with log.subscribe(3) as happenings:
        assert [it async for it in happenings] == []
