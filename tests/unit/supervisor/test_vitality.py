"""Checks of a machine that runs, its watchdog, and what its policy makes of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from qmpkit.errors import SpecInvalid
from qmpkit.spec.health import FunctionCheck, Health, ProcessCheck, QmpCheck
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.events import Happening
from qmpkit.supervisor.health import Healthy, Unhealthy
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake import FakeQemu, Late
from qmpkit.testing.fake_kept import FakeGround, fake_ground
from qmpkit.testing.leaks import leaks
from qmpkit.vm import VM
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import AT_ONCE, lab, on_disk

pytestmark = pytest.mark.usefixtures("state")


class Guest:
    """What a function says that is asked about a machine's health."""

    def __init__(self) -> None:
        self.well = True
        self.asked = 0

    async def __call__(self, vm: VM) -> bool:
        self.asked += 1
        return self.well

    def health(self, **numbers: Any) -> Health:
        quick = {"interval": 0.01, "start_interval": 0.01, "timeout": 0.3, "start_period": 0}
        checks = (FunctionCheck(self, name="own"),)
        return Health(checks=checks, **{**quick, "retries": 2, **numbers})


@asynccontextmanager
async def _lab() -> AsyncIterator[tuple[FakeGround, Supervisor]]:
    async with leaks(), fake_ground() as ground, lab(ground) as supervisor:
        yield ground, supervisor
        for name in supervisor.kept:
            await supervisor.declare(name, "stopped")


async def test_an_unhealthy_machine_is_ended_and_started_again(state: Path) -> None:
    guest = Guest()
    async with _lab() as (ground, supervisor):
        kept = await supervisor.ensure(spec("a"), restart=AT_ONCE, health=guest.health())
        await kept.until(lambda: isinstance(kept.health, Healthy))
        assert kept.row().health == "healthy"
        guest.well = False
        await kept.until(lambda: len(ground.started) == 2)
        guest.well = True
        end = kept.end
        assert end is not None
        assert (end.cause, end.why) == (
            Mishap.UNHEALTHY,
            "it was unhealthy: own: it says no, 2 times in a row",
        )
        await kept.until(lambda: isinstance(kept.health, Healthy))
        assert on_disk(state, "a")["health"] is None, "a function is in no text"


async def test_it_is_on_record_why_it_is_ended_before_it_is(state: Path) -> None:
    guest, written = Guest(), []

    def quit_(_: dict[str, Any]) -> object:
        record = on_disk(state, "a")
        written.append((record["phase"], record["end"]["cause"]))
        return ground["a"].qemu.run("quit", {}, [])

    async with _lab() as (ground, supervisor):
        kept = await supervisor.ensure(spec("a"), restart=AT_ONCE, health=guest.health())
        ground["a"].qemu.on("quit", quit_)
        guest.well = False
        await kept.until(lambda: len(ground.started) == 2)
        guest.well = True
        assert written == [("ending", "unhealthy")]


@pytest.mark.parametrize(("policy", "restart"), [("never", True), ("always", False)])
async def test_one_that_is_not_to_be_replaced_is_shown_and_left(policy: str, restart: bool) -> None:
    guest = Guest()
    told: list[Happening] = []
    async with _lab() as (ground, supervisor):
        with supervisor.subscribe() as happenings:
            health = guest.health(restart=restart)
            kept = await supervisor.ensure(spec("a"), restart=policy, health=health)
            guest.well = False
            await kept.until(lambda: isinstance(kept.health, Unhealthy))
            guest.well = True
            await kept.until(lambda: isinstance(kept.health, Healthy))
            while not told or told[-1].state != "healthy" or len(_told(told)) < 2:
                told.append(await anext(happenings))
        assert _told(told)[-2:] == ["unhealthy", "healthy"]
        assert len(ground.started) == 1


def _told(happenings: list[Happening]) -> list[str]:
    return [it.state for it in happenings if it.state in ("healthy", "unhealthy")]


async def test_a_frozen_qemu_is_unhealthy_and_replaced() -> None:
    health = Health(
        checks=(QmpCheck(), ProcessCheck()),
        interval=0.01,
        start_interval=0.01,
        timeout=0.1,
        start_period=0,
        retries=1,
    )
    async with _lab() as (ground, supervisor):
        kept = await supervisor.ensure(spec("a"), restart=AT_ONCE, health=health)
        await kept.until(lambda: isinstance(kept.health, Healthy))
        ground["a"].qemu.silent = True
        await kept.until(lambda: len(ground.started) == 2)
        assert kept.end is not None
        assert "qmp: no answer within 0.1 s" in kept.end.why


async def test_one_that_stands_still_is_not_asked() -> None:
    guest = Guest()
    async with _lab() as (_, supervisor):
        kept = await supervisor.ensure(spec("a"), health=guest.health())
        await kept.until(lambda: isinstance(kept.health, Healthy))
        await supervisor.declare("a", "paused")
        asked = guest.asked
        guest.well = False
        await supervisor.declare("a", "running")
        assert guest.asked - asked <= 1
        guest.well = True


async def test_other_checks_while_it_runs() -> None:
    first, second = Guest(), Guest()
    async with _lab() as (ground, supervisor):
        kept = await supervisor.ensure(spec("a"), health=first.health())
        await kept.until(lambda: isinstance(kept.health, Healthy))
        await supervisor.ensure(spec("a"), health=second.health())
        await kept.until(lambda: second.asked > 0)
        await supervisor.ensure(spec("a"))
        await kept.until(lambda: kept.health is None)
        assert len(ground.started) == 1


async def test_one_that_others_require_is_up_when_it_is_healthy() -> None:
    guest = Guest()
    guest.well = False
    slow = guest.health(start_period=60)
    async with _lab() as (ground, supervisor):
        await supervisor.ensure(spec("db"), health=slow)
        web = await supervisor.ensure(spec("web"), requires=["db"], wait=False)
        await web.until(lambda: "db, which is not up yet" in web.cause)
        assert len(ground.started) == 1
        guest.well = True
        await web.wait_running()


async def test_checks_are_on_record_and_go_on_after_an_adoption(state: Path) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as supervisor:
            await supervisor.ensure(spec("a"), health=["qmp"])
        assert on_disk(state, "a")["health"]["checks"] == [{"kind": "qmp"}]
        async with lab(ground) as supervisor:
            kept = supervisor.kept["a"]
            await kept.until(lambda: isinstance(kept.health, Healthy))


async def test_a_function_that_fails_as_it_is_given_up_has_failed() -> None:
    """Nothing that it raises is a reason to leave the machine alone."""

    async def clumsy() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("not even that")

    async def check(vm: VM) -> bool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clumsy)
            await trio.sleep_forever()
        return True

    health = Health(checks=(FunctionCheck(check),), timeout=0.05, start_period=0, retries=1)
    async with _lab() as (_, supervisor):
        kept = await supervisor.ensure(spec("a"), health=health, restart="never")
        await kept.until(lambda: isinstance(kept.health, Unhealthy) or not kept.tended)
        assert isinstance(kept.health, Unhealthy)
        assert "ValueError: not even that" in kept.health.why


async def test_nonsense_is_refused() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        with pytest.raises(SpecInvalid, match=r"health\.retries"):
            await supervisor.ensure(spec("a"), health=Health(checks=(QmpCheck(),), retries=0))
        with pytest.raises(SpecInvalid, match=r"after: must be a list, not 'db'"):
            await supervisor.ensure(spec("a"), after="db")
        with pytest.raises(SpecInvalid, match=r"requires\[0\]: cannot be 1"):
            await supervisor.ensure(spec("a"), requires=[1])  # type: ignore[list-item]
        assert not supervisor.kept
        kept = await supervisor.ensure(spec("a"))
        with pytest.raises(SpecInvalid, match=r"restart\.intensity"):
            await supervisor.amend(spec("a"), restart=Restart(intensity=-1))
        with pytest.raises(SpecInvalid, match=r"health\.interval"):
            strange = Health(checks=(QmpCheck(),), interval=-1)
            await supervisor.amend(spec("a"), restart="never", health=strange)
        assert (kept.restart.policy, kept.record.health) == ("on-failure", None)


@pytest.mark.parametrize(
    ("status", "cause"),
    [("watchdog", Mishap.WATCHDOG), ("internal-error", Mishap.INTERNAL_ERROR)],
)
async def test_what_qemu_stopped_for_is_answered_by_the_policy(status: str, cause: Mishap) -> None:
    async with _lab() as (ground, supervisor):
        kept = await supervisor.ensure(spec("a"), restart=AT_ONCE)
        qemu = ground["a"].qemu
        if status == "watchdog":
            qemu.emit("WATCHDOG", {"action": "pause"})
        qemu.status = status
        qemu.emit("STOP")
        await kept.until(lambda: len(ground.started) == 2)
        assert kept.end is not None
        assert kept.end.cause is cause
        json.dumps(kept.end.why)


async def _asked_no_more(qemu: FakeQemu) -> None:
    """Until a moment has gone by without a command: nothing has happened, so nothing is asked."""
    asked = -1
    with trio.fail_after(10):
        while asked != len(qemu.calls):
            asked = len(qemu.calls)
            await trio.sleep(0.2)


async def test_after_more_events_than_it_reads_it_watches_on() -> None:
    async with _lab() as (ground, supervisor):
        kept = await supervisor.ensure(spec("a"), restart=AT_ONCE)
        qemu = ground["a"].qemu
        qemu.misbehave("query-status", Late(0.1))  # it is waited for meanwhile
        for _ in range(1500):
            qemu.emit("STOP")
        await _asked_no_more(qemu)
        qemu.status = "watchdog"
        qemu.emit("STOP")
        await kept.until(lambda: len(ground.started) == 2)
        assert kept.end is not None
        assert kept.end.cause is Mishap.WATCHDOG
