"""A farm on fakes to which everything happens, under a clock that jumps: no invariant breaks.

The supervisor is the real one.  What it does in threads is done in this one, and its disk
takes no time, so that the clock only jumps when there is nothing left to do.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from qmpkit.errors import QmpkitError
from qmpkit.process.entries import entries_in
from qmpkit.process.roots import JOURNAL
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.health import Health, QmpCheck
from qmpkit.spec.restart import Policy, Restart
from qmpkit.supervisor.events import Happening, Happenings
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.record import Declared, Record
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake import Duplicated, Late, Lost, Misbehaviour
from qmpkit.testing.fake_kept import FakeGround, FakeKept, fake_ground
from qmpkit.testing.leaks import leaks
from tests.sizes import SIMULATED_EVENTS
from tests.unit.supervisor.conftest import spec

STARTS = 3
PERIOD, INTENSITY = 60.0, 3
MOST_CPU = 60.0  # seconds
SILENCES = (1.0, 20.0, 100.0)
NOISE = ("RTC_CHANGE", "NIC_RX_FILTER_CHANGED", "BALLOON_CHANGE", "VSERPORT_CHANGE", "SURPRISE")


@attrs.frozen
class Plan:
    """A machine of the farm."""

    policy: Policy
    health: Health | None = None
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()

    @property
    def restart(self) -> Restart:
        return Restart(policy=self.policy, delay=1, intensity=INTENSITY, period=PERIOD)


CHECKED = Health(checks=(QmpCheck(),), interval=5, timeout=2, retries=2)
FARM = {
    "alone": Plan("never"),
    "db": Plan("always", CHECKED),
    "cache": Plan("on-failure"),
    "web1": Plan("always", requires=("db",)),
    "web2": Plan("on-failure", CHECKED, after=("cache",), requires=("db",)),
    "web3": Plan("on-failure", after=("web1", "web2")),
    "batch": Plan("never", CHECKED),
    "worker": Plan("always"),
}


class Simulation:
    """What happens to the farm, and what must hold meanwhile."""

    def __init__(self, ground: FakeGround, dice: random.Random) -> None:
        self.ground = ground
        self.dice = dice
        self.kinds: Counter[str] = Counter()
        self.broken: list[str] = []
        self.last: dict[str, FakeKept] = {}  # by name
        self.told: dict[str, Happening] = {}  # the last of each machine
        self.failing: Counter[str] = Counter()  # starts that are to fail
        self.asked: defaultdict[str, list[float]] = defaultdict(list)  # for starts nobody counts
        self.starts: defaultdict[str, list[float]] = defaultdict(list)
        self.lab: Supervisor
        self.nursery: trio.Nursery
        ground.prepare = self._begun

    @property
    def events(self) -> int:
        return self.kinds.total()

    @asynccontextmanager
    async def supervisor(self) -> AsyncIterator[Supervisor]:
        """One supervisor's time, from the adoption to whatever is under way at its end."""
        self.lab = Supervisor("lab", keep=True, ground=self.ground, starts=STARTS)
        self.told.clear()  # the next one tells how it finds things
        for name in FARM:
            self.asked[name].append(trio.current_time())  # the start that was interrupted
        async with self.lab, trio.open_nursery() as self.nursery:
            with self.lab.subscribe(100_000) as happenings:
                self.nursery.start_soon(self._listen, happenings)
                yield self.lab
                self.nursery.cancel_scope.cancel()

    # What must hold

    def must(self, holds: bool, what: str) -> None:
        if not holds:
            self.broken.append(what)

    async def _listen(self, happenings: Happenings) -> None:
        sequence = self.lab.last_event
        async for it in happenings:
            sequence += 1
            self.must(it.sequence == sequence, f"{it} is not number {sequence}")
            before, self.told[it.machine] = self.told.get(it.machine), it
            if before is not None:
                twice = (it.state, it.cause) == (before.state, before.cause)
                self.must(not twice, f"{it} is told twice")

    def _begun(self, fake: FakeKept) -> None:
        """A machine is being started."""
        name, now = fake.name, trio.current_time()
        before, self.last[name] = self.last.get(name), fake
        self.must(before is None or before.status is not None, f"{name} is started twice")
        history = self.lab.kept[name].record.history
        self.must(history.crash_loop is None, f"{name} is started in a crash loop")
        begun = [it for it in self.last.values() if not it.kept and it.status is None]
        self.must(len(begun) <= STARTS, f"too many start: {begun}")
        self.starts[name].append(now)
        self._not_too_often(name)
        if self.failing[name]:
            self.failing[name] -= 1
            fake.end(1)

    def _not_too_often(self, name: str) -> None:
        starts, asked = self.starts[name], self.asked[name]
        if FARM[name].policy == "never":
            self.must(len(starts) <= len(asked), f"{name} is restarted, against its policy")
            return
        since = starts[-1] - PERIOD
        within = sum(time > since for time in starts)
        free = sum(time > since - PERIOD for time in asked)
        most = INTENSITY + 1 + free
        self.must(within <= most, f"{name} is started too often: {within} > {most}")

    def check(self) -> None:
        assert self.broken == []
        for name, fake in self.last.items():
            kept = self.lab.kept.get(name)
            if fake.status is None:
                assert kept is not None, f"{name} lives and is not known"
                assert kept.pid == fake.pid, f"{name} is not the one on record"

    def check_disk(self, journal: Path) -> None:
        """What is on record is what is known."""
        found = [Record.from_json(text) for text in entries_in(journal).values()]
        assert {it.name: it for it in found} == {it.name: it.record for it in self.kept()}

    def kept(self) -> list[Kept]:
        return [*self.lab.kept.values()]

    # What happens

    async def step(self) -> None:
        up = [kept for kept in self.kept() if kept.vm and not kept.vm.report]
        if up and self.dice.random() < 0.9:
            kinds: dict[Callable[[Kept, FakeKept], None], int] = {
                self._noise: 60,
                self._stands_and_goes: 25,
                self._ends: 8,
                self._mishap: 3,
                self._is_silent: 2,
                self._misbehaves: 4,
                self._hangs_up: 3,
            }
            (kind,) = self.dice.choices([*kinds], [*kinds.values()])
            kept = self.dice.choice(up)
            kind(kept, self.ground[kept.name])
        else:
            await self._owner_acts(self.dice.choice([*FARM]))

    def _noise(self, _: Kept, fake: FakeKept) -> None:
        times = self.dice.randint(10, 50)
        for number in range(times):
            fake.qemu.emit(self.dice.choice(NOISE), {"n": number})
        self.kinds["noise"] += times

    def _stands_and_goes(self, kept: Kept, fake: FakeKept) -> None:
        if fake.qemu.status not in ("running", "paused"):
            return  # it is down, or as good as
        times = 2 * self.dice.randint(2, 15)
        for number in range(times):
            fake.qemu.run("stop" if number % 2 else "cont", {}, [])
        if kept.declared == "running":
            fake.qemu.run("cont", {}, [])
        self.kinds["stop and cont"] += times

    def _ends(self, _: Kept, fake: FakeKept) -> None:
        ends: dict[str, Callable[[], None]] = {
            "shutdown": fake.qemu.guest_shutdown,
            "panic": fake.qemu.guest_panic,
            "crash": fake.qemu.crash,
            "kill": fake.kill,
            "terminate": fake.terminate,
            "exit": lambda: fake.end(1),
        }
        how = self.dice.choice([*ends])
        ends[how]()
        self.kinds[how] += 1

    def _mishap(self, _: Kept, fake: FakeKept) -> None:
        status = self.dice.choice(["watchdog", "internal-error"])
        if status == "watchdog":
            fake.qemu.emit("WATCHDOG", {"action": "pause"})
        fake.qemu.status = status
        fake.qemu.emit("STOP")
        self.kinds[status] += 1

    def _is_silent(self, _: Kept, fake: FakeKept) -> None:
        fake.qemu.silent = True
        fake.ignores = {signal.SIGTERM} if self.dice.random() < 0.5 else set()
        self.nursery.start_soon(self._speaks_again, fake, self.dice.choice(SILENCES))
        self.kinds["silence"] += 1

    async def _speaks_again(self, fake: FakeKept, after: float) -> None:
        try:
            await trio.sleep(after)
        finally:
            fake.qemu.silent = False
            fake.ignores = set()

    def _misbehaves(self, _: Kept, fake: FakeKept) -> None:
        command = self.dice.choice(["cont", "stop", "quit", "query-status"])
        plan: Misbehaviour = Late(3) if self.dice.random() < 0.5 else Duplicated(2)
        fake.qemu.misbehave(command, plan)
        fake.qemu.misbehave("quit", Lost())
        self.kinds["misbehaviour"] += 1

    def _hangs_up(self, _: Kept, fake: FakeKept) -> None:
        fake.qemu.hang_up()
        self.kinds["lost monitor"] += 1

    async def _owner_acts(self, name: str) -> None:
        """It is declared something, by somebody whose patience varies."""
        if self.dice.random() < 0.3:
            self.failing[name] = self.dice.randint(1, 2)
            self.kinds["start that fails"] += self.failing[name]
        wanted: Declared = self.dice.choice(["running", "running", "paused", "stopped"])
        self.kinds[f"declared {wanted}"] += 1
        with trio.move_on_after(self.dice.choice([0, 0.5, 60])), suppress(QmpkitError):
            await self.declare(name, wanted)

    async def declare(self, name: str, wanted: Declared) -> None:
        plan, kept = FARM[name], self.lab.kept.get(name)
        self.asked[name] += 2 * [trio.current_time()]  # by each of the two calls
        if kept is None or wanted != "stopped":
            await self.lab.ensure(
                spec(name),
                restart=plan.restart,
                health=plan.health,
                after=plan.after,
                requires=plan.requires,
                wait=False,
            )
        await self.lab.declare(name, wanted)


def _in_one_thread(monkeypatch: pytest.MonkeyPatch, clock: MockClock) -> None:
    async def at_once(call: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return call(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(time, "time", lambda: 1e9 + clock.current_time())


@pytest.mark.bound(1e9)  # of the clock's seconds
async def test_everything_happens_to_a_farm(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    _in_one_thread(monkeypatch, autojump_clock)
    dice, begun = random.Random(4), time.process_time()
    # One spawner for all: the clock would jump over the milliseconds that each one's end takes.
    async with leaks(), shared_spawner(), fake_ground() as ground:
        farm = Simulation(ground, dice)
        while farm.events < SIMULATED_EVENTS:
            enough = farm.events + dice.randint(100, 4000)
            async with farm.supervisor():
                while farm.events < min(enough, SIMULATED_EVENTS):
                    await farm.step()
                    await trio.sleep(dice.expovariate(0.5))
                    farm.check()
        async with farm.supervisor() as lab:
            await _calm(farm, lab)
            farm.check_disk(state / JOURNAL)
            await lab.stop_kept()
            for name in FARM:
                await lab.forget(name)
        assert ground.alive == []
        assert entries_in(state / JOURNAL) == {}
    used = time.process_time() - begun
    print(f"{farm.events} events, {len(ground.started)} starts, {used:.1f} s: {farm.kinds}")
    assert used < MOST_CPU, f"{used:.1f} s"


async def _calm(farm: Simulation, lab: Supervisor) -> None:
    """When nothing goes wrong any more, all that is declared running runs."""
    farm.failing.clear()
    for name in FARM:
        await farm.declare(name, "running")
    await trio.sleep(2 * PERIOD)
    farm.check()
    assert {kept.name: kept.state for kept in farm.kept()} == dict.fromkeys(FARM, "running")
    assert sorted(it.name for it in farm.ground.alive) == sorted(FARM)
