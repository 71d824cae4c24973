"""A pool of fakes: fair, never twice, never the dead, and nothing left of any of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

import qmpkit
from qmpkit.errors import MachineGone, SpecInvalid
from qmpkit.machine.launch import LaunchOptions
from qmpkit.machine.machine import Graces
from qmpkit.machine.state import State
from qmpkit.templates import pool as pool_module
from qmpkit.templates.errors import PoolClosed, TemplateFailed
from qmpkit.templates.saved import CLONES
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake import Silent
from qmpkit.testing.fake_machine import FakeHost
from qmpkit.testing.leaks import leaks
from tests.contract.migrating import migrating, template_at
from tests.sizes import POOL_CANCELS

EACH = (16 + 64) << 20  # bytes that a pool counts for each of these machines


@pytest.fixture
def host() -> FakeHost:
    return FakeHost(prepare=migrating)


@pytest.fixture
async def saved(host: FakeHost, tmp_path: Path) -> qmpkit.Template:
    return await template_at(host, tmp_path / "saved")


@pytest.mark.parametrize("loaded", [True, False])
async def test_what_is_taken_is_replaced_and_never_given_again(
    host: FakeHost, saved: qmpkit.Template, loaded: bool
) -> None:
    names: set[str] = set()
    async with (
        leaks(),
        qmpkit.Pool(saved, warm=2, loaded=loaded, twin=True, start=host.start) as pool,
    ):
        for _ in range(6):
            await pool.wait_warm()
            async with pool.take() as vm, pool.take() as other:
                assert vm.state is other.state is State.RUNNING
                assert {vm.name, other.name}.isdisjoint(names)
                names |= {vm.name, other.name}
                assert pool.counts["taken"] == 2
        await pool.wait_warm()
        assert pool.counts["warm"] == 2
    assert len(names) == 12
    assert not host.alive
    assert list((saved.path / CLONES).iterdir()) == []
    assert await saved.verify() == ()


async def test_takers_are_served_in_the_order_they_came(
    host: FakeHost, saved: qmpkit.Template
) -> None:
    order: list[int] = []

    async def use(pool: qmpkit.Pool, number: int) -> None:
        async with pool.take():
            order.append(number)
            assert pool.counts["taken"] == 1
            await trio.testing.wait_all_tasks_blocked()

    async with (
        leaks(),
        qmpkit.Pool(saved, memory=EACH, twin=True, start=host.start) as pool,
        trio.open_nursery() as nursery,
    ):
        for number in range(5):
            nursery.start_soon(use, pool, number)
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert order == list(range(5))


async def test_the_dead_are_replaced_and_not_given(host: FakeHost, saved: qmpkit.Template) -> None:
    async with leaks(), qmpkit.Pool(saved, warm=2, twin=True, start=host.start) as pool:
        await pool.wait_warm()
        dead = list(host.alive)
        for name in dead:
            host[name].process.end(1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with pool.take() as vm:
            assert vm.name not in dead


async def test_the_silent_are_replaced_and_not_given(
    host: FakeHost, saved: qmpkit.Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_HEALTH_BOUND", 0.5)
    options = LaunchOptions(graces=Graces(quit=0.1))
    async with qmpkit.Pool(saved, twin=True, options=options, start=host.start) as pool:
        await pool.wait_warm()
        (silent,) = host.alive
        host[silent].qemu.misbehave("query-status", Silent())
        host[silent].qemu.misbehave("quit", Silent())
        async with pool.take() as vm:
            assert vm.name != silent
    assert not host.alive


async def test_a_taker_that_is_cancelled_costs_nobody_a_machine(
    host: FakeHost, saved: qmpkit.Template
) -> None:
    async with leaks(), qmpkit.Pool(saved, memory=EACH, twin=True, start=host.start) as pool:
        async with pool.take():
            with trio.move_on_after(0.01):
                async with pool.take():
                    raise AssertionError("there is room for one")
            assert pool.counts["waiting"] == 0
        await pool.wait_warm()
        name = host.alive[-1]
        with trio.CancelScope() as scope:
            scope.cancel()
            async with pool.take():  # is given one, and cancelled before it wakes
                raise AssertionError("it is cancelled")
        assert pool.counts["warm"] == 1
        async with pool.take() as vm:
            assert vm.name == name


async def test_a_template_that_cannot_be_started_is_told_to_whoever_waits(
    host: FakeHost, saved: qmpkit.Template
) -> None:
    host.prepare = partial(migrating, ends="failed")
    async with leaks(), qmpkit.Pool(saved, twin=True, start=host.start) as pool:
        with pytest.raises(PoolClosed, match="3 starts in a row have failed") as caught:
            async with pool.take():
                pass
        assert isinstance(caught.value.__cause__, TemplateFailed)
        with pytest.raises(PoolClosed, match="3 starts in a row"):
            await pool.wait_warm()
    assert not host.alive


async def test_what_cannot_be_loaded_when_it_is_taken_is_told(
    host: FakeHost, saved: qmpkit.Template
) -> None:
    host.prepare = partial(migrating, ends="failed")
    async with leaks(), qmpkit.Pool(saved, loaded=False, twin=True, start=host.start) as pool:
        with pytest.raises(PoolClosed, match="3 machines in a row were dead or silent") as caught:
            async with pool.take():
                pass
        assert isinstance(caught.value.__cause__, TemplateFailed)


async def test_a_pool_that_ends_ends_what_was_taken(host: FakeHost, saved: qmpkit.Template) -> None:
    pool = qmpkit.Pool(saved, twin=True, start=host.start)
    with pytest.raises(PoolClosed, match="it is not entered"):
        await pool.wait_warm()
    async with leaks():
        async with trio.open_nursery() as nursery:
            taken, waits = trio.Event(), trio.Event()

            async def use() -> None:
                async with pool.take() as vm:
                    taken.set()
                    with pytest.raises(MachineGone):
                        await vm.machine.reached(State.PANICKED)
                waits.set()

            async with pool:
                nursery.start_soon(use)
                await taken.wait()
            await waits.wait()
        with pytest.raises(PoolClosed, match="its block has ended"):
            async with pool.take():
                pass
    assert not host.alive


async def test_a_pool_at_every_checkpoint(host: FakeHost, saved: qmpkit.Template) -> None:
    async def life() -> None:
        async with qmpkit.Pool(saved, warm=1, twin=True, start=host.start) as pool:
            async with pool.take() as vm:
                assert vm.state is State.RUNNING
            await pool.wait_warm()

    def check() -> None:
        assert not host.alive
        assert list((saved.path / CLONES).iterdir()) == []

    async with leaks():
        await trio.to_thread.run_sync(lambda: None)  # trio keeps its thread: not a leak of ours
        assert await cancel_at_every_checkpoint(life, every=POOL_CANCELS, after=check) > 3


async def test_bounds_that_do_not_fit_are_refused(saved: qmpkit.Template) -> None:
    with pytest.raises(SpecInvalid, match=r"holds 1 of 80MiB each \(at least 160MiB"):
        async with qmpkit.Pool(saved, warm=2, memory=EACH, twin=True):
            pass
    with pytest.raises(SpecInvalid, match="counts from 0, not from -1"):
        async with qmpkit.Pool(saved, warm=-1, twin=True):
            pass
    with pytest.raises(SpecInvalid, match="only be twins"):
        qmpkit.Pool(saved)


async def test_a_pool_is_entered_once(host: FakeHost, saved: qmpkit.Template) -> None:
    pool = qmpkit.Pool(saved, twin=True, start=host.start)
    async with leaks():
        async with pool:
            await pool.wait_warm()
            with pytest.raises(RuntimeError, match="a Pool is entered once: make another"):
                await pool.__aenter__()
            assert pool.counts["warm"] == 1
        with pytest.raises(RuntimeError, match="make another"):
            await pool.__aenter__()
    assert not host.alive
