"""Guests that their owner pauses, or lets go on, while they move: they are as he wished."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

import qmpkit
from qmpkit import (
    VM,
    Destination,
    MachineGone,
    MigrationFailed,
    Round,
    SpecInvalid,
    State,
    Step,
    Supervisor,
    postcopy,
)
from qmpkit.operations.migration.convergence import Policy
from qmpkit.testing.leaks import leaks
from tests.live.counting import counted
from tests.live.kept import Places, end_all, lab
from tests.live.migrating import SLOW, At, counting, lives_on, still_here
from tests.live.receiving import door, end_both, other, runs_on

pytestmark = pytest.mark.live


@asynccontextmanager
async def under_way(vm: VM, destination: Destination, policy: Policy | str) -> AsyncIterator[None]:
    """It moves, too slowly ever to arrive until the end of the block."""
    async with vm.migrating(destination, policy=policy, options=SLOW) as migration:
        assert (await anext(migration)).remaining
        yield
        with suppress(MachineGone):  # QEMU 10.0 soon moves one that stands still all the same
            unbounded = {"max-bandwidth": 1 << 40, "max-postcopy-bandwidth": 1 << 40}
            await vm.execute("migrate-set-parameters", unbounded)


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


async def test_one_that_goes_on_on_its_way_may_go_by_postcopy(qemu: str, tmp_path: Path) -> None:
    """It was prepared for that, though it stood still as its move began."""
    switches = trio.Event()

    def once_it_runs(_: Round) -> Step:
        if vm.state is State.RUNNING:
            switches.set()
        return Step(postcopy=switches.is_set())

    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        await vm.pause()
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            async with under_way(vm, destination, postcopy(once_it_runs)):
                await vm.resume()
                with trio.move_on_after(5):  # QEMU 10.0 may have moved it by then
                    await switches.wait()
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


async def declared_paused_on_its_way(supervisor: Supervisor, to: str | None) -> SpecInvalid | None:
    """It stands still at once, and moves on; what `declare` says."""
    vm, going, said = supervisor.kept["mover"].vm, trio.Event(), None
    assert vm is not None

    async def declare() -> None:
        nonlocal said
        try:
            await supervisor.declare("mover", "paused")
        except SpecInvalid as refused:
            said = refused

    def told(_: object) -> None:
        going.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(supervisor.migrate, "mover", to=to, options=SLOW, progress=told))
        await going.wait()
        nursery.start_soon(declare)
        await vm.machine.reached(State.PAUSED)
        with suppress(MachineGone):
            await vm.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    return said


async def test_a_kept_one_is_paused_on_its_way(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path))
            await runs_on(kept, 0)
            before = kept.pid
            assert await declared_paused_on_its_way(supervisor, None) is None
            assert kept.state == kept.declared == "paused" and kept.pid != before
            await supervisor.declare("mover", "running")
            await runs_on(kept, 1)
        await end_all()


async def test_one_is_paused_on_its_way_elsewhere(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    """It stands still there, and who has asked for it hears where it is."""
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            await runs_on(await here.ensure(counting(qemu, tmp_path)), 0)
            said = await declared_paused_on_its_way(here, to)
            assert "it has migrated to" in str(said)
            kept = there.kept["mover"]
            await kept.until(lambda: kept.state == "paused")
            assert kept.declared == "paused"
            await there.declare("mover", "running")
            await runs_on(kept, 1)
        await end_both()
