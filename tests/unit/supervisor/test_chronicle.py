"""The event log on disk: subscribers may start in the past, and learn what is gone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpkit._trio import service_nursery
from qmpkit.qmp.errors import EventsLost
from qmpkit.supervisor import chronicle as chronicle_module
from qmpkit.supervisor import events as events_module
from qmpkit.supervisor.chronicle import Chronicle
from qmpkit.supervisor.events import EventLog, Happening, Happenings
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab


async def _read(happenings: Happenings, number: int) -> list[int]:
    return [(await anext(happenings)).sequence for _ in range(number)]


async def test_the_past_and_then_what_happens() -> None:
    events = EventLog("lab")
    for number in range(5):
        events.tell("a", "running", str(number))
    with events.subscribe(10, since=1) as happenings:
        assert await _read(happenings, 2) == [2, 3]
        events.tell("a", "running", "5")
        assert await _read(happenings, 2) == [4, 5]
    with events.subscribe(10, since=-1) as happenings:
        assert await _read(happenings, 6) == list(range(6))
    with events.subscribe(10, since=99) as happenings:
        events.tell("a", "running", "6")
        assert await _read(happenings, 1) == [6]


async def test_over_supervisors_and_their_restarts(state: Path) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as supervisor:
            await supervisor.ensure(spec("a"))
        async with lab(ground) as supervisor:
            with supervisor.subscribe(since=-1) as happenings:
                told = [await anext(happenings) for _ in range(5)]
            assert [it.state for it in told][:3] == ["queued", "starting", "paused"]
            assert [it.sequence for it in told] == [0, 1, 2, 3, 100_000]
            assert (told[-1].state, told[-1].machine) == ("running", "a")
            await supervisor.declare("a", "stopped")
    folder = state / "events"
    assert (folder.stat().st_mode & 0o777) == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.usefixtures("state")
async def test_who_listens_before_it_is_opened_hears_the_past_too() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"))
        second, heard = Supervisor("lab", keep=True, ground=ground), list[Happening]()
        with second.subscribe(since=-1) as happenings:

            async def listen() -> None:
                async for happening in happenings:
                    heard.append(happening)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                await trio.testing.wait_all_tasks_blocked()
                async with second:
                    await second.declare("a", "stopped")
        past = ["queued", "starting", "paused", "running"]
        assert [it.state for it in heard] == [*past, "running", "gone"]


async def test_a_past_that_is_gone_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chronicle_module, "FILE_LIMIT", 200)
    monkeypatch.setattr(chronicle_module, "FILES_KEPT", 2)
    monkeypatch.setattr(chronicle_module, "_TOGETHER", 0)
    monkeypatch.setattr(events_module, "RING", 2)
    events = EventLog("lab")
    chronicle = Chronicle(tmp_path / "events")
    events.keep(chronicle, chronicle.open())
    async with service_nursery() as services:
        services.start_soon(chronicle.run)
        for number in range(40):
            events.tell("a", "running", str(number))
            await trio.sleep(0.002)
    assert len(list((tmp_path / "events").iterdir())) == 2
    with events.subscribe(10, since=3) as happenings:
        with pytest.raises(EventsLost):
            await anext(happenings)
        first = (await anext(happenings)).sequence
        assert first > 4
        assert await _read(happenings, 39 - first) == list(range(first + 1, 40))


async def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    async with service_nursery() as services:
        first = Chronicle(folder)
        events = EventLog("lab")
        events.keep(first, first.open())
        services.start_soon(first.run)
        events.tell("a", "running", "with a\nnew line")
        await trio.testing.wait_all_tasks_blocked(0.05)
    (path,) = folder.iterdir()
    with path.open("ab") as file:
        file.write(b'{"machine": "a", "sequ')
    second = Chronicle(folder)
    events = EventLog("lab")
    events.keep(second, second.open())
    assert events.next == 100_000
    events.tell("a", "gone", "")
    with events.subscribe(10, since=-1) as happenings:
        assert [(await anext(happenings)).cause for _ in range(2)] == ["with a\nnew line", ""]


async def test_a_full_disk_is_told_once_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "events").write_text("in its way")
    chronicle = Chronicle(tmp_path / "events")
    events = EventLog("lab")
    events.keep(chronicle, chronicle.open())
    async with service_nursery() as services:
        services.start_soon(chronicle.run)
        for number in range(5):
            events.tell("a", "running", str(number))
            await trio.sleep(0.005)
    assert [record.message for record in caplog.records if "is not written" in record.message][
        1:
    ] == []
    with events.subscribe(10, since=-1) as happenings:
        assert await _read(happenings, 5) == list(range(5))


async def test_a_folder_that_is_removed_is_made_again(state: Path) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as supervisor:
            await supervisor.ensure(spec("a"))
            await trio.sleep(0.2)  # written by then
            shutil.rmtree(state / "events")
            await supervisor.declare("a", "stopped")
        async with lab(ground) as second:
            with second.subscribe(since=-1) as happenings:
                with pytest.raises(EventsLost):
                    await anext(happenings)
                assert (await anext(happenings)).state == "gone"


async def test_what_is_told_as_it_ends_is_written(tmp_path: Path) -> None:
    events, chronicle = EventLog("lab"), Chronicle(tmp_path / "events")
    events.keep(chronicle, chronicle.open())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chronicle.run)
        await trio.testing.wait_all_tasks_blocked()
        events.tell("a", "running", "")
        nursery.cancel_scope.cancel()  # its task wakes with the news, and is cancelled
    assert Chronicle(tmp_path / "events").open() == 100_000


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lives=st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=4),
    ring=st.integers(1, 8),
    place=st.floats(0, 1),
)
async def test_whatever_was_told_is_read_once_and_in_order(
    lives: list[list[int]], ring: int, place: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log") / "events"
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events_module, "RING", ring)
        patch.setattr(chronicle_module, "FILE_LIMIT", 300)
        patch.setattr(chronicle_module, "FILES_KEPT", 1000)
        for life in lives:
            events = EventLog("lab")
            chronicle = Chronicle(folder)
            events.keep(chronicle, chronicle.open())
            async with service_nursery() as services:
                services.start_soon(chronicle.run)
                await trio.lowlevel.checkpoint()  # a service that has not begun has no end
                for burst in life:
                    for _ in range(burst):
                        told.append(events.next)
                        events.tell("a", "running", "")
                    await trio.sleep(0.001)
        since = told[int(place * (len(told) - 1))] if told else -1
        with events.subscribe(100, since=since) as happenings:
            events.tell("a", "gone", "the last")
            seen = []
            while (it := await anext(happenings)).cause != "the last":
                seen.append(it.sequence)
        assert seen == [number for number in told if number > since]


async def test_where_a_time_is_among_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory, and on disk what memory has forgotten."""
    monkeypatch.setattr(chronicle_module, "FILE_LIMIT", 1)  # a file for each
    log, chronicle = EventLog("supervisor 'lab'"), Chronicle(tmp_path / "events")
    assert await log.before(time.time()) == -1
    log.keep(chronicle, chronicle.open())
    for second in range(3):
        it = Happening("a", second, 1000.0 + second, "running", "")
        log.ring.append(it)
        assert chronicle_module._append(chronicle.folder, [it]) is None
    for _ in range(2):
        found = [await log.before(1000.0 + second) for second in (0, 0.5, 1, 2, 9)]
        assert found == [-1, 0, 0, 1, 2]
        log.ring.clear()
