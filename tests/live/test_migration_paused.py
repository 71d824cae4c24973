"""Guests that their owner pauses, or lets go on, while they move: they are as he wished."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

import qmpkit
from qmpkit import VM, Destination, MachineGone, MigrationFailed, State, Step, postcopy
from qmpkit.operations.migration.convergence import Policy
from qmpkit.testing.leaks import leaks
from tests.live.counting import counted
from tests.live.migrating import SLOW, At, counting, lives_on, still_here

pytestmark = pytest.mark.live


@asynccontextmanager
async def under_way(vm: VM, destination: Destination, policy: Policy | str) -> AsyncIterator[None]:
    """It moves, too slowly ever to arrive until the end of the block."""
    async with vm.migrating(destination, policy=policy, options=SLOW) as migration:
        assert (await anext(migration)).remaining
        yield
        with suppress(MachineGone):  # QEMU 10.0 soon moves one that stands still all the same
            await vm.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})


async def paused_there(vm: VM, had: int) -> None:
    assert vm.state is State.PAUSED and await counted(vm) == had
    await vm.resume()
    await lives_on(vm, had)


@pytest.mark.parametrize("policy", ["live", postcopy(after=0)], ids=["live", "postcopy"])
async def test_one_that_stands_still_does_so_there(
    qemu: str, policy: Policy | str, tmp_path: Path
) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        await vm.pause()
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            async with under_way(vm, destination, policy):
                pass
            await paused_there(destination.vm, had)


async def test_one_that_is_paused_on_its_way_stands_still_there(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        async with qmpkit.receiving(vm) as destination:
            async with under_way(vm, destination, "live"):
                await vm.pause()
                had = await counted(vm)
            await paused_there(destination.vm, had)


async def test_one_that_goes_on_on_its_way_runs_there(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        await vm.pause()
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            async with under_way(vm, destination, "live"):
                await vm.resume()
            await lives_on(destination.vm, had)


async def test_a_pause_on_its_way_is_no_downtime(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        async with qmpkit.receiving(vm) as destination:
            async with vm.migrating(destination, options=SLOW) as migration:
                assert (await anext(migration)).remaining
                async with vm.paused():
                    pass
                await trio.sleep(1)
                await vm.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
            assert migration.took is not None and 0 < migration.took.downtime < 1
            await lives_on(destination.vm, 1)


async def test_paused_on_its_way_it_stays_so_when_it_stays(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        async with qmpkit.receiving(vm) as destination:
            with trio.CancelScope() as scope:
                async with under_way(vm, destination, "live"):
                    await vm.pause()
                    had = await counted(vm)
                    scope.cancel()
        assert scope.cancelled_caught
        assert vm.state is State.PAUSED and await counted(vm) == had
        await vm.resume()
        await still_here(vm, had)


async def test_paused_by_its_policy_it_goes_on_when_it_stays(qemu: str, tmp_path: Path) -> None:
    at = At("stop")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path), options=at.options) as vm:
        await vm.console.expect(".")

        async with qmpkit.receiving(vm) as destination:
            with trio.CancelScope() as scope:
                at.act = scope.cancel
                await vm.migrate(destination, policy=lambda _: Step(paused=True), options=SLOW)
        assert at.has_come and scope.cancelled_caught
        await still_here(vm, 1)


async def test_paused_as_it_is_about_to_run_there_it_stays(qemu: str, tmp_path: Path) -> None:
    """By postcopy it would run before its owner could have it stand still again."""
    at = At("pre-switchover", "received")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path), options=at.options) as vm:
        await vm.console.expect(".")
        at.act = lambda: setattr(vm.machine, "halted", True)
        async with qmpkit.receiving(vm) as destination:
            with pytest.raises(MigrationFailed, match="paused as it was about to run there"):
                await vm.migrate(destination, policy=postcopy(after=0), options=SLOW)
            assert at.has_come and vm.state is State.PAUSED
        await vm.resume()
        await still_here(vm, 1)
