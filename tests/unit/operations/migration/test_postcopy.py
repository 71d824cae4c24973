"""What is done while a guest's memory is at both ends, on ends that say what the test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qmpkit import Disk, Fault, MachineDied, MigrationFailed, MigrationLost, MigrationOptions
from qmpkit._trio import raise_collapsed
from qmpkit.machine.report import ExitCause, ExitReport
from qmpkit.operations.migration.capabilities import Setting
from qmpkit.operations.migration.postcopy import (
    UNHEARD,
    Outlook,
    Postcopy,
    outlook,
    postcopy_faults,
)
from qmpkit.operations.migration.silence import SILENCE
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.transfer import LAST_WORDS
from qmpkit.operations.migration.ways import Route
from qmpkit.process.status import ExitStatus
from qmpkit.qmp.errors import CommandRefused
from tests.unit.operations.migration.source import Source

ACTIVE, PAUSED, DONE = "postcopy-active", "postcopy-paused", "completed"
RECOVER = "postcopy-recover"


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (ACTIVE, "active", Outlook.SENDING),
        (ACTIVE, ACTIVE, Outlook.SENDING),
        (RECOVER, RECOVER, Outlook.SENDING),
        (DONE, ACTIVE, Outlook.SENDING),
        (DONE, PAUSED, Outlook.SENDING),  # it has yet to say that it has all
        (ACTIVE, PAUSED, Outlook.CUT),
        (PAUSED, ACTIVE, Outlook.CUT),
        (PAUSED, PAUSED, Outlook.CUT),
        (RECOVER, PAUSED, Outlook.CUT),
        *((source, DONE, Outlook.ARRIVED) for source in (ACTIVE, PAUSED, DONE, "failed", None)),
        *((source, None, Outlook.LOST) for source in (ACTIVE, PAUSED, DONE, "failed", None)),
        *((None, status, Outlook.ORPHANED) for status in ("active", ACTIVE, PAUSED)),
        *(("failed", status, Outlook.ORPHANED) for status in ("active", ACTIVE, PAUSED)),
        (ACTIVE, "failed", Outlook.ORPHANED),
        # Of another supervisor's, which cannot be asked: its memory may come all the same.
        (ACTIVE, UNHEARD, Outlook.SENDING),
        (PAUSED, UNHEARD, Outlook.CUT),
        *((source, UNHEARD, Outlook.UNHEARD) for source in (DONE, None)),
    ],
)
def test_what_there_is_to_do(
    source: str | None, destination: str | None, expected: Outlook
) -> None:
    assert outlook(source, destination) is expected


def test_ways_by_which_memory_cannot_follow() -> None:
    assert postcopy_faults(MigrationOptions(way="tcp"), ()) == ()
    file = MigrationOptions(way="file", file=Path("ram"))
    assert [fault.path for fault in postcopy_faults(file, ())] == ["way"]
    several = MigrationOptions(way="unix", channels=2)
    assert [fault.path for fault in postcopy_faults(several, ())] == ["channels"]


def test_dirty_bitmaps_cannot_follow() -> None:
    disks = [Disk(f"/new/{number}", format="qcow2", id=f"disk{number}") for number in (0, 1)]
    plain, backed_up = (
        DiskMove(disk=disk, source="n", file="/old", size=1, bytes=1, number=0) for disk in disks
    )
    backed_up = attrs.evolve(backed_up, bitmaps=("one",))
    (fault,) = postcopy_faults(MigrationOptions(), (plain, backed_up))
    assert fault.path == "disks.disk1" and "dirty bitmaps" in fault.message


class Ends(Source):
    """A source, and what postcopy asks of a destination; `told`: all that they were."""

    def __init__(self) -> None:
        super().__init__(ACTIVE)
        self.told: list[str] = []
        self.refusals_left = 0
        self.is_deaf = False
        self.silent_for = 0.0
        self.death: MachineDied | None = None
        self._hear: Callable[[str | None], None] = lambda _: None

    # The source

    def asked(self, command: str, arguments: Mapping[str, Any], *, oob: bool) -> None:
        self.told.append(command)
        if command == "migrate-pause":
            assert oob
            if self.answer["status"] == PAUSED:
                raise self._refusal(command)
            self.say(PAUSED)
        if command == "migrate":
            assert arguments == {"uri": "unix:again", "resume": True}
            self._resume()

    def _resume(self) -> None:
        if self.refusals_left:
            self.refusals_left -= 1
            raise self._refusal("migrate")
        if not self.is_deaf:
            self.both(RECOVER, ACTIVE)

    def _refusal(self, command: str) -> CommandRefused:
        reply = {"error": {"class": "GenericError", "desc": "no route"}}
        return CommandRefused(self.name, command, {}, reply)

    def must_live(self, asked: str) -> None:
        if self.death is not None:
            raise self.death

    def say(self, status: str) -> None:
        self.answer = {"status": status}
        super().say(status)

    def die(self) -> None:
        report = ExitReport(self.name, ExitCause.KILLED, ExitStatus(signal=9), 1.0)
        self.death = death = MachineDied(report)
        self.hub.end(lambda: death)

    # The destination

    async def refusals(self, setting: Setting) -> tuple[Fault, ...]:
        return ()

    def begins(self) -> None:
        self.told.append("begins")

    def switched(self) -> None:
        self.told.append("switched")

    async def listen(self, heard: Callable[[str | None], None]) -> None:
        self._hear = heard
        heard("active")
        await trio.sleep_forever()

    def unheard(self) -> float:
        return self.silent_for

    def there(self, status: str | None) -> None:
        self._hear(status)

    def both(self, *statuses: str) -> None:
        for status in statuses:
            self.say(status)
            self.there(status)

    async def run(self) -> float | None:
        self.told.append("run")
        return 17.0

    async def cut(self) -> None:
        self.told.append("cut")
        self.there(PAUSED)

    def laid_again(
        self, options: MigrationOptions, route: Route | None, source: object
    ) -> AbstractAsyncContextManager[str]:
        return self.again()

    @asynccontextmanager
    async def again(self) -> AsyncIterator[str]:
        self.told.append("again")
        yield "unix:again"

    def last_words(self) -> str:
        return "farewell"


@asynccontextmanager
async def bringing(
    ends: Ends, *, within: float = 60.0, look: Callable[[], object] | None = None
) -> AsyncIterator[list[float | None]]:
    """Bring the rest within the block, whose end waits for it; when it ran."""
    ran: list[float | None] = []

    async def looked() -> None:
        if look is not None:
            look()

    way = Postcopy(ends, ends, ends.again, recover_within=within, look=looked)  # type: ignore[arg-type]

    async def bring() -> None:
        ran.append(await way.bring(lambda: ends.told.append("let go")))
        if way.failure is not None:
            raise way.failure

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring)
            await trio.testing.wait_all_tasks_blocked()
            yield ran
    except BaseExceptionGroup as group:
        raise_collapsed(group)


async def test_it_is_told_to_run_once_it_has_what_that_needs() -> None:
    ends = Ends()
    async with bringing(ends) as ran:
        assert ends.told == []  # the source may not have let go of the images
        ends.there(ACTIVE)
        await trio.testing.wait_all_tasks_blocked()
        assert ends.told == ["let go", "switched", "run"] and not ran
        ends.both(DONE)
    assert ran == [17.0]


async def test_a_cut_is_mended(autojump_clock: trio.testing.MockClock) -> None:
    ends = Ends()
    ends.refusals_left = 2
    async with bringing(ends) as ran:
        ends.there(ACTIVE)
        ends.say(PAUSED)  # the other end does not notice by itself
        await trio.sleep(1.0)
        assert ends.told.count("cut") == 1 and ends.told.count("again") == 3 and not ran
        ends.both(DONE)
    assert ran == [17.0]


async def test_a_connection_that_is_made_and_says_nothing_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends = Ends()
    ends.is_deaf = True
    async with bringing(ends) as ran:
        ends.there(ACTIVE)
        ends.both(PAUSED)
        await trio.sleep(6.0)
        assert ends.told.count("migrate") == 2
        ends.is_deaf = False
        await trio.sleep(6.0)
        ends.both(DONE)
    assert ran == [17.0]


async def test_a_cut_that_is_not_mended_in_time_loses_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends, begun = Ends(), trio.current_time()
    ends.refusals_left = 1000
    with pytest.raises(MigrationLost, match=r"not made anew in 3 s: .*no route"):
        async with bringing(ends, within=3.0):
            ends.there(ACTIVE)
            ends.both(PAUSED)
    assert trio.current_time() - begun == pytest.approx(3.0, abs=0.1)


async def test_that_it_waits_anew_is_no_news(autojump_clock: trio.testing.MockClock) -> None:
    """QEMU 7.2 says "setup" then, and stays "postcopy-paused", also when it cannot wait."""
    ends = Ends()
    ends.refusals_left = 1
    async with bringing(ends) as ran:
        ends.there(ACTIVE)
        ends.say(PAUSED)
        await trio.testing.wait_all_tasks_blocked()  # else it may hear of the other end's first
        ends.there(PAUSED)
        ends.say("setup")
        await trio.sleep(1.0)
        assert ends.told.count("again") == 2 and "migrate-pause" not in ends.told
        ends.both(DONE)
    assert ran == [17.0]


async def test_whether_it_is_all_there_nobody_says(autojump_clock: trio.testing.MockClock) -> None:
    ends = Ends()
    with pytest.raises(MigrationLost, match="cannot be asked whether all of it is there"):
        async with bringing(ends):
            ends.there(ACTIVE)
            ends.say(DONE)
            await trio.testing.wait_all_tasks_blocked()
            ends.there(UNHEARD)


@pytest.mark.bound(1000)  # seconds of a clock that jumps
async def test_a_cable_that_stays_out_loses_it(autojump_clock: trio.testing.MockClock) -> None:
    """Both QEMUs say "postcopy-active" all the time; memory that goes may be there."""
    ends, sent = Ends(), 0
    with pytest.raises(MigrationLost, match="cannot be asked whether all of it is there"):
        async with bringing(ends):
            ends.there(ACTIVE)
            ends.silent_for = 100.0
            for _ in range(20):
                sent += 1
                ends.answer = {"status": ACTIVE, "ram": {"transferred": sent}}
                ends.there(UNHEARD)
                await trio.sleep(10)
            await trio.sleep(SILENCE - 12)
            ends.there(UNHEARD)
            await trio.sleep(5)
            gone = trio.current_time()
            ends.there(UNHEARD)
    assert trio.current_time() == gone and "migrate-pause" not in ends.told


@pytest.mark.parametrize(("says", "after"), [("failed", 1.0), (PAUSED, 1.0), (None, LAST_WORDS)])
async def test_a_source_that_has_not_let_go_says_what_comes_of_its_destinations_end(
    says: str | None, after: float, autojump_clock: trio.testing.MockClock
) -> None:
    """It may have failed to switch, and go on; whoever asks it next is to hear of that."""
    ends = Ends()
    with pytest.raises(MigrationLost, match="has ended"):
        async with bringing(ends):
            ends.there(None)
            await trio.sleep(1.0)
            if says is not None:
                ends.say(says)
            await trio.sleep_forever()
    assert trio.current_time() == after and ends.told == []


async def test_what_is_cut_again_and_again_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends = Ends()
    with pytest.raises(MigrationLost, match="cut 51 times"):
        async with bringing(ends):
            ends.there(ACTIVE)
            for _ in range(60):
                ends.both(PAUSED)
                await trio.testing.wait_all_tasks_blocked()
    assert ends.told.count("again") == 50


@pytest.mark.parametrize("last", [DONE, PAUSED])
async def test_the_end_of_the_source_is_none_of_a_guest_that_is_there(
    autojump_clock: trio.testing.MockClock, last: str
) -> None:
    """What it had sent may yet be on its way, for a moment."""
    ends = Ends()
    try:
        async with bringing(ends) as ran:
            ends.there(ACTIVE)
            await trio.testing.wait_all_tasks_blocked()
            ends.die()
            await trio.sleep(1.0)
            ends.there(last)
        assert ran == [17.0] and last == DONE
    except MigrationLost as lost:
        assert "the source's QEMU has ended" in str(lost) and last == PAUSED


async def test_the_end_of_the_destination_loses_it() -> None:
    ends = Ends()
    with pytest.raises(MigrationLost, match="destination said: farewell"):
        async with bringing(ends):
            ends.there(ACTIVE)
            ends.there(None)


async def test_before_it_is_let_go_of_it_is_the_sources(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends = Ends()
    with pytest.raises(MigrationFailed, match="failed"):
        async with bringing(ends):
            ends.say("failed")
    ends = Ends()
    with pytest.raises(MachineDied):
        async with bringing(ends):
            ends.die()
    assert "run" not in ends.told


async def test_what_was_let_go_of_before_is_lost_with_the_source(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A guest that was found so runs there already, or stands still there by its owner's word."""
    ends = Ends()
    ends.answer = {"status": "failed"}
    way = Postcopy(ends, ends, ends.again, recover_within=1.0)  # type: ignore[arg-type]
    with pytest.raises(MigrationLost, match="says 'failed'"):
        await way.bring()
    assert ends.told == []


async def test_whoever_looks_on_may_fail() -> None:
    def look() -> None:
        raise RuntimeError("no more paper")

    ends = Ends()
    with pytest.raises(RuntimeError, match="no more paper"):
        async with bringing(ends, look=look) as ran:
            ends.there(ACTIVE)
            await trio.testing.wait_all_tasks_blocked()
            assert not ran
            ends.both(DONE)
    assert ends.told == ["let go", "switched", "run"]
