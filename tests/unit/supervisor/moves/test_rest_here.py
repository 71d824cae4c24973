"""A guest whose memory follows it here, on a QEMU that says what the test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from qmpkit import MachineSpec, State
from qmpkit.machine.keep import Home
from qmpkit.operations.migration.local_end import LocalRest
from qmpkit.operations.migration.silence import SILENCE
from qmpkit.operations.migration.wire import Refused, Wire, WireLost
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.events import EventLog
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.moves import rest_here
from qmpkit.supervisor.moves.arrivals import Arrivals, Outcome
from qmpkit.supervisor.moves.rest_here import RestHere
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.record import Record, Remainder

ID, ACTIVE, PAUSED, DONE = "1" * 32, "postcopy-active", "postcopy-paused", "completed"


class Child:
    killed = False

    def kill(self) -> None:
        self.killed = True


class Machine:
    """Of which nothing is asked but its end."""

    def __init__(self) -> None:
        self.child = Child()
        self.state = State.PAUSED

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()


class Ticket:
    async def durable(self) -> None:
        await trio.lowlevel.checkpoint()


class Journal:
    def post(self, record: Record) -> Ticket:
        return Ticket()


@attrs.define
class Means:
    arrivals: Arrivals
    journal: Journal = attrs.field(factory=Journal)


class Coming:
    """One that comes; `say`: what its QEMU says of the migration.

    From another host by *address*; `quiet`: seconds since something has, as the kernel says.
    """

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, address: str = "", **record: Any
    ) -> None:
        self.runs: list[str] = []
        self.quiet: float | None = 0.0
        self.say: Callable[[str | None], None]
        self.arrivals = Arrivals(folder / "arrivals")
        self.machine = Machine()
        spec = MachineSpec(name="mover")
        self.kept = Kept(
            Record(
                **{"name": "mover", "declared": "running", "spec": spec, "asked": "", **record},
                restart=Restart(),
                sockets="",
            ),
            Home(folder, folder),
            EventLog("supervisor 'other'"),
        )
        self.outcome = ""

        async def listen(_: LocalRest, heard: Callable[[str | None], None]) -> None:
            self.say = heard
            await trio.sleep_forever()

        async def run(_: LocalRest) -> float:
            self.runs.append("run")
            return 1.0

        async def put(arrivals: Arrivals, ident: str, outcome: Outcome) -> None:
            arrivals._known[ident] = outcome  # no thread, which the clock would not wait for

        async def quiet(_: int) -> float | None:
            await trio.lowlevel.checkpoint()
            return self.quiet

        patch.setattr(rest_here, "_quiet", quiet)
        patch.setattr(Arrivals, "put", put)
        patch.setattr(LocalRest, "listen", listen)
        patch.setattr(LocalRest, "run", run)
        patch.setattr(LocalRest, "last_words", lambda _: "words")
        remainder = Remainder(within=10.0, address=address)
        means: Any = Means(self.arrivals)
        machine: Any = self.machine
        self.rest = RestHere(self.kept, machine, means, ID, remainder)

    @asynccontextmanager
    async def followed(self, *, talks: bool = True) -> AsyncIterator[Wire]:
        """It comes within the block, whose end waits for that; what its source asks by."""
        ours, theirs = trio.testing.memory_stream_pair()

        async def follow() -> None:
            wire = Wire(theirs) if talks else None
            self.outcome = await self.rest.followed(wire)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            yield Wire(ours)


@pytest.fixture
async def coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coming:
    return Coming(tmp_path, monkeypatch, arriving=ID, rest=Remainder(within=10.0))


async def test_it_is_ours_from_when_it_is_told_to_run(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    async with coming.followed() as wire:
        with pytest.raises(Refused, match="before it is there"):
            await wire.ask("run_ahead")
        coming.say(ACTIVE)
        assert coming.kept.record.arriving and not coming.runs
        for _ in range(2):  # the answer may be lost, and it is asked again
            await wire.ask("run_ahead")
        now = await wire.ask("now", seen=-1)
        assert (now["status"], now["over"]) == (ACTIVE, False) and coming.runs == ["run"]
        assert coming.kept.record.arrived == ID and coming.kept.record.rest is not None
        coming.say(DONE)
        now = await wire.ask("now", seen=-1)
        assert (now["status"], now["runs"], now["over"]) == (DONE, True, True)
    assert coming.outcome == "runs" and coming.kept.record.rest is None
    assert not coming.machine.child.killed and coming.arrivals.coming == {}


async def test_one_that_nobody_has_run_is_not_told_to_be_followed_by_its_memory(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    """Its supervisor, or the connection, was lost before it was known whether it has switched."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with coming.followed(talks=False) as _, trio.open_nursery() as nursery:
        coming.say("active")
        assert coming.kept.cause.endswith("which has not had it run here yet")
        nursery.start_soon(coming.rest.converse, Wire(theirs))
        coming.say(ACTIVE)
        await Wire(ours).ask("run_ahead")
        assert coming.kept.cause.startswith("its memory follows")
        coming.say(DONE)
        assert (await Wire(ours).ask("now", seen=-1))["over"]
    assert coming.outcome == "runs"


async def test_whose_source_has_said_that_it_switched_is_followed_by_its_memory(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    async with coming.followed() as wire:
        assert coming.kept.cause.startswith("its memory follows")
        await wire.ask("give_up")
    assert coming.outcome == "discarded"


async def test_cut_off_before_it_runs_it_runs_once_it_can(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    async with coming.followed() as wire:
        coming.say(PAUSED)
        await wire.ask("run_ahead")
        assert coming.rest.is_ours and not coming.runs
        coming.say(ACTIVE)
        coming.say(DONE)
        await trio.testing.wait_all_tasks_blocked()
        assert (await wire.ask("now", seen=-1))["over"]
    assert coming.outcome == "runs" and coming.runs == ["run"]


async def test_what_is_lost_is_its_policys(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    async with coming.followed() as wire:
        coming.say(ACTIVE)
        await wire.ask("run_ahead")
        coming.say(None)
        now = await wire.ask("now", seen=-1)
        assert (now["status"], now["over"]) == (None, True) and "words" in now["said"]
    end = coming.kept.record.end
    assert coming.outcome == "lost" and end is not None and end.cause is Mishap.LOST
    assert coming.kept.record.phase == "ending" and coming.arrivals.get(ID) == "lost"


async def test_given_up_before_it_ran_it_never_does(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    async with coming.followed() as wire:
        coming.say(ACTIVE)
        assert await wire.ask("give_up") == {"outcome": "discarded", "over": True}
    assert coming.outcome == "discarded" and coming.machine.child.killed
    assert not coming.runs and coming.kept.record.end is None


async def test_a_source_that_asks_what_came_of_it_goes_on(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    async with coming.followed(talks=False):
        coming.say(ACTIVE)
        await coming.rest.settled()
    assert coming.outcome == "discarded"


@pytest.mark.parametrize("runs", [False, True])
async def test_nobody_waits_for_ever(
    autojump_clock: trio.testing.MockClock, coming: Coming, runs: bool
) -> None:
    """Memory that still comes needs nobody; else a source that does not come is given up."""
    begun = trio.current_time()
    async with coming.followed() as wire:
        coming.say(ACTIVE)
        if runs:
            await wire.ask("run_ahead")
        await wire.close()
        if runs:
            await trio.sleep(30)
            begun = trio.current_time()
            coming.say(PAUSED)
    assert trio.current_time() - begun == pytest.approx(25.0, abs=1)
    assert coming.outcome == ("lost" if runs else "discarded")


@pytest.mark.bound(1000)  # seconds of a clock that jumps
async def test_memory_that_does_not_come_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its QEMU says "postcopy-active" all the time; a source that speaks to us decides."""
    far = "10.0.0.1:4456"
    coming = Coming(tmp_path, monkeypatch, far, arriving=ID, rest=Remainder(within=10.0))
    async with coming.followed() as wire:
        coming.say(ACTIVE)
        await wire.ask("run_ahead")
        coming.quiet = 100.0
        for _ in range(10):
            await trio.sleep(20)
            await wire.ask("beat")
        coming.quiet = 0.0
        await wire.close()
        for quiet in (0.0, None, SILENCE - 1, 40.0, 0.0):
            coming.quiet = quiet
            await trio.sleep(20)
        coming.quiet = 200.0
        begun = trio.current_time()
    assert trio.current_time() - begun == pytest.approx(25.0, abs=3)
    assert coming.outcome == "lost" and coming.machine.child.killed


async def test_before_anything_has_come_nobody_waits(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    begun = trio.current_time()
    async with coming.followed(talks=False):
        coming.say("setup")
    assert coming.outcome == "discarded" and trio.current_time() - begun < 1


async def test_one_that_was_found_runs_by_what_is_on_record(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = Coming(tmp_path, monkeypatch, arrived=ID, rest=Remainder(within=10.0))
    async with coming.followed(talks=False):
        coming.say(DONE)
    assert coming.outcome == "runs" and coming.runs == ["run"]


async def test_a_stop_at_once_does_not_wait(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    async with coming.followed(talks=False):
        coming.say(ACTIVE)
        assert coming.kept.call_off is not None
        coming.kept.call_off(0.0)
        assert coming.machine.child.killed
        coming.say(None)


async def test_whoever_breaks_the_rules_is_hung_up_on(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    async with coming.followed() as wire:
        coming.say(ACTIVE)
        with pytest.raises(WireLost):
            await wire.ask("execute", command="quit")
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:  # another one may come
            nursery.start_soon(coming.rest.converse, Wire(theirs))
            assert await Wire(ours).ask("give_up") == {"outcome": "discarded", "over": True}


async def test_left_before_it_ran_the_next_one_goes_on(
    autojump_clock: trio.testing.MockClock, coming: Coming
) -> None:
    with trio.move_on_after(5):
        async with coming.followed(talks=False):
            coming.say(ACTIVE)
    assert coming.kept.is_left and not coming.machine.child.killed
    assert coming.kept.record.arriving == ID and coming.kept.record.rest is not None
