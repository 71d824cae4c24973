"""Guests that run at their destination before their memory is there, and what befalls them then."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    CannotMigrate,
    MigrationFailed,
    MigrationLost,
    MigrationOptions,
    NotArrived,
    Round,
    State,
    Step,
    postcopy,
)
from qmpkit.operations.migration.options import Way
from qmpkit.testing.leaks import leaks
from tests.live.counting import counted
from tests.live.migrating import SLOW, counting, lives_on, options_for, still_here
from tests.live.relay import BY_RELAY, Relay, ahead, phases
from tests.sizes import LONG, NEWEST, QEMU_VERSIONS

pytestmark = pytest.mark.live

AT_ONCE = postcopy(after=0)


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Relay:
    return Relay(monkeypatch)


async def test_a_connection_that_is_cut_is_made_anew(
    qemu: str, tmp_path: Path, relay: Relay
) -> None:
    seen: list[Round] = []

    async def cut(destination: qmpkit.Destination) -> None:
        await relay.hold_ahead(destination.machine)
        with pytest.raises(NotArrived):
            _ = destination.vm
        relay.cut()

    async with leaks(), ahead(counting(qemu, tmp_path)) as (vm, destination):
        had = await counted(vm)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut, destination)
            took = await vm.migrate(
                destination, policy=AT_ONCE, options=BY_RELAY, progress=seen.append
            )
        assert 0 < took.downtime < took.seconds and vm.state is State.GONE
        assert str(vm.report).startswith("its guest has migrated")
        await lives_on(destination.vm, had)
    assert set(phases(seen)) == {"precopy", "postcopy", "cut"}
    assert seen[-1].phase == "postcopy" and seen[-1].remaining == 0


@pytest.mark.parametrize("victim", ["source", "destination"])
async def test_a_guest_that_needs_both_ends_is_lost_with_one(
    qemu: str, victim: str, tmp_path: Path, relay: Relay
) -> None:
    async def kill(destination: qmpkit.Destination, pid: int) -> None:
        await relay.hold_ahead(destination.machine)
        os.kill(pid, signal.SIGKILL)

    spec = counting(qemu, tmp_path)
    async with leaks():
        async with ahead(spec) as (vm, destination), trio.open_nursery() as nursery:
            pid = vm.pid if victim == "source" else destination.machine.child.pid
            nursery.start_soon(kill, destination, pid)
            with pytest.raises(MigrationLost, match="as after a power cut") as lost:
                await vm.migrate(destination, policy=AT_ONCE, options=BY_RELAY)
            assert f"the {victim}'s QEMU has ended" in str(lost.value)
            assert vm.report is not None and destination.machine.report is not None
        async with qmpkit.running(spec) as vm:  # nobody holds its images
            await vm.console.expect(".")


async def test_cancelled_when_it_runs_there_it_is_there(
    qemu: str, tmp_path: Path, relay: Relay
) -> None:
    """The cancellation waits for the rest, which is over soon."""

    async def cancel(destination: qmpkit.Destination, scope: trio.CancelScope) -> None:
        await relay.hold_ahead(destination.machine)
        scope.cancel()
        relay.release()

    async with leaks(), ahead(counting(qemu, tmp_path)) as (vm, destination):
        had = await counted(vm)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, destination, scope)
                await vm.migrate(destination, policy=AT_ONCE, options=BY_RELAY)
                await trio.sleep_forever()
        assert scope.cancelled_caught and vm.state is State.GONE
        await lives_on(destination.vm, had)


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("after", ["cut", "cancelled"])
async def test_what_takes_too_long_is_given_up(
    qemu: str, after: str, tmp_path: Path, relay: Relay
) -> None:
    """Each has its bound, and then the guest is lost."""
    scope = trio.CancelScope()

    async def act(destination: qmpkit.Destination) -> None:
        await relay.hold_ahead(destination.machine)
        relay.cut() if after == "cut" else scope.cancel()

    options = attrs.evolve(BY_RELAY, finish_within=0.0, recover_within=0.0)
    why = "not made anew in 0 s" if after == "cut" else "not all there 0 s later"
    async with leaks(), ahead(counting(qemu, tmp_path)) as (vm, destination):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act, destination)
            with scope, pytest.raises(MigrationLost, match=why):
                await vm.migrate(destination, policy=AT_ONCE, options=options)
        assert vm.report is not None and destination.machine.report is not None


async def test_cancelled_before_it_is_here(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            with trio.CancelScope() as scope:
                await vm.migrate(
                    destination,
                    policy=postcopy(lambda _: Step()),
                    options=SLOW,
                    progress=lambda _: scope.cancel(),
                )
            assert scope.cancelled_caught and not destination.has_switched
        on = await vm.execute("query-migrate-capabilities")
        assert not any(line["state"] for line in on)  # it is as it was
        await still_here(vm, had)


async def test_what_cannot_be_is_told_before(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        for way in ("file", "multifd"):
            async with qmpkit.receiving(vm) as destination:
                with pytest.raises(CannotMigrate, match="postcopy"):
                    await vm.migrate(
                        destination, policy="postcopy", options=options_for(way, tmp_path)
                    )
        async with qmpkit.receiving(vm) as destination:
            with pytest.raises(MigrationFailed, match=r"`qmpkit\.postcopy`"):
                await vm.migrate(destination, policy=lambda _: Step(postcopy=True), options=SLOW)
        await still_here(vm, had)


@pytest.mark.qemus(*QEMU_VERSIONS[:1])  # 10.0 has it of root by /dev/userfaultfd
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has what can be taken from it")
async def test_a_host_that_does_not_let_it_is_told_of_before(qemu: str, tmp_path: Path) -> None:
    allowed = Path("/proc/sys/vm/unprivileged_userfaultfd")
    if allowed.read_text().strip() != "0":  # noqa: ASYNC240
        pytest.skip("this host lets everybody have userfaultfd")
    launcher = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path, launcher=launcher)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            with pytest.raises(CannotMigrate, match="unprivileged_userfaultfd") as told:
                await vm.migrate(destination, policy="postcopy")
            assert [fault.path for fault in told.value.faults] == ["policy"]
        await lives_on(vm, had)


@pytest.mark.usefixtures("relay")
async def test_whoever_is_told_may_fail(qemu: str, tmp_path: Path) -> None:
    """The guest does not suffer for it."""

    def told(now: Round) -> None:
        if now.phase == "postcopy":
            raise RuntimeError("no more paper")

    async with leaks(), ahead(counting(qemu, tmp_path)) as (vm, destination):
        had = await counted(vm)
        with pytest.raises(RuntimeError, match="no more paper"):
            await vm.migrate(destination, policy=AT_ONCE, options=BY_RELAY, progress=told)
        assert vm.state is State.GONE
        await lives_on(destination.vm, had)


@pytest.mark.skipif(not LONG, reason="each way: with --long")
@pytest.mark.parametrize("way", ["fd", "unix", "tcp"])
async def test_by_each_way(qemu: str, way: Way, tmp_path: Path) -> None:
    async with leaks(), ahead(counting(qemu, tmp_path)) as (vm, destination):
        had = await counted(vm)
        options = MigrationOptions(way=way)
        await vm.migrate(destination, policy="postcopy", options=options)
        await lives_on(destination.vm, had)
