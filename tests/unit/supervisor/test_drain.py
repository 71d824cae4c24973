"""Stopping kept machines together: in order, under one deadline, and none holds up the others."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpkit.errors import SpecInvalid
from qmpkit.machine.report import ExitCause
from qmpkit.supervisor.drain import Drained
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import fake_ground
from qmpkit.testing.leaks import leaks
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


async def _chain(supervisor: Supervisor) -> None:
    await supervisor.ensure(spec("db"))
    await supervisor.ensure(spec("web"), requires=["db"])
    await supervisor.ensure(spec("proxy"), after=["web"])
    await supervisor.ensure(spec("other"))


async def test_the_last_to_start_is_the_first_to_stop() -> None:
    told: list[tuple[str, int, int]] = []
    async with leaks(), fake_ground() as ground, lab(ground) as supervisor:
        await _chain(supervisor)
        drained = await supervisor.stop_kept(told=lambda *step: told.append(step))
        names = [name for name, _, _ in told]
        assert [name for name in names if name != "other"] == ["proxy", "web", "db"]
        assert [(done, total) for _, done, total in told] == [(n, 4) for n in (1, 2, 3, 4)]
        assert {one.end.cause for one in drained if one.end} == {ExitCause.HOST_QUIT}
        assert {kept.declared for kept in supervisor.kept.values()} == {"stopped"}
        assert ground.alive == []


async def test_only_those_that_are_named() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await _chain(supervisor)
        await supervisor.stop_kept(["web", "other"])
        assert {name for name, kept in supervisor.kept.items() if kept.tended} == {"db", "proxy"}
        with pytest.raises(SpecInvalid, match="no kept machine has it"):
            await supervisor.stop_kept(["nobody"])


async def test_guests_that_do_not_obey_end_with_the_deadline() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await _chain(supervisor)
        for fake in ground.alive:
            fake.qemu.obeys_powerdown = False
        began = trio.current_time()
        drained = await supervisor.stop_kept(powerdown_grace=60, deadline=0.3)
        assert trio.current_time() - began < 10
        assert [one.failure for one in drained] == [None] * 4
        assert ground.alive == []


async def test_one_that_is_silent_holds_up_nobody() -> None:
    def mute(_: dict[str, Any]) -> object:
        ground["web"].qemu.silent = True
        return {}

    async with fake_ground() as ground, lab(ground) as supervisor:
        await _chain(supervisor)
        ground["web"].qemu.on("quit", mute)
        drained = await supervisor.stop_kept()
        assert sorted(one.name for one in drained) == ["db", "other", "proxy", "web"]
        assert ground.alive == []


async def test_cancelled_it_is_still_made_true() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        ground["a"].qemu.obeys_powerdown = False
        before = kept.declarations
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(supervisor.stop_kept, powerdown_grace=0.5))
            await kept.until(lambda: kept.declarations > before)
            nursery.cancel_scope.cancel()
        assert kept.declared == "stopped"
        await kept.wait_rest()
        assert ground.alive == []


async def test_one_that_is_forgotten_meanwhile_was_down() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await supervisor.ensure(spec("a"))
        await supervisor.ensure(spec("b"), after=["a"])
        await supervisor.declare("a", "stopped")
        stopped: list[Drained] = []

        async def stop() -> None:
            stopped.extend(await supervisor.stop_kept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            await wait_all_tasks_blocked()
            await supervisor.forget("a")
        assert [(it.name, it.failure) for it in stopped] == [("b", None), ("a", None)]
