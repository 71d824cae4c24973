"""Disks that go along with a guest that runs at its destination before its memory is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import CannotMigrate, MigrationLost, Round, postcopy
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, nothing_left, write
from tests.live.counting import counted
from tests.live.kept import Places, end_all, kill, lab
from tests.live.migrating import counting, lives_on
from tests.live.receiving import runs_on
from tests.live.relay import BY_RELAY, LARGE, Relay, phases
from tests.live.test_migration_disks import folder, names_in
from tests.sizes import DISK_MOVES, LONG

pytestmark = pytest.mark.live

AT_ONCE = postcopy(after=0)


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Relay:
    return Relay(monkeypatch)


@pytest.mark.skipif(not LONG, reason="they go to another supervisor too: with --long")
async def test_they_are_alike_before_it_runs_there(qemu: str, tmp_path: Path, relay: Relay) -> None:
    """A cut is mended as without them, and what it writes meanwhile is in the new ones alone."""
    new = folder(tmp_path / "new")
    seen: list[Round] = []

    async def cut(destination: qmpkit.Destination) -> None:
        await relay.hold_ahead(destination.machine)
        relay.cut()

    async with leaks(), qmpkit.running(counting(qemu, tmp_path, memory=LARGE)) as vm:
        await vm.console.expect(".")
        await write(vm, "disk0", 0, 5)
        await vm.snapshots.take("one")
        await write(vm, "disk0", 2, 8)
        had = await counted(vm)
        async with qmpkit.receiving(vm, disks=new) as destination:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut, destination)
                await vm.migrate(
                    destination, policy=AT_ONCE, options=BY_RELAY, progress=seen.append
                )
            there = destination.vm
            await lives_on(there, had)
            layers = [Path(it.file) for it in await there.disks.chain("disk0")]
            assert layers[1:] == [tmp_path / "qcow2.img"] and layers[0].parent == new
            await nothing_left(there)
    assert phases(seen) == ["precopy", "postcopy", "cut"]
    await holds(str(layers[0]), "qcow2", {0: 5, 2: 8, 3: 7})
    await holds(str(tmp_path / "qcow2.img"), "qcow2", {0: 5, 2: 0, 3: 0})


@pytest.mark.qemus(*DISK_MOVES)
async def test_what_a_backup_needs_does_not_go_along(qemu: str, tmp_path: Path) -> None:
    """Its bitmaps would be sent after the switch, and the destination abort; so it is refused."""
    new = folder(tmp_path / "new")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        await vm.backups.run(tmp_path / "backup")
        had = await counted(vm)
        async with qmpkit.receiving(vm, disks=new) as destination:
            with pytest.raises(CannotMigrate, match="dirty bitmaps") as cannot:
                await vm.migrate(destination, policy="postcopy")
            assert [it.path for it in cannot.value.faults] == ["disks.disk0"]
        assert names_in(new) == []
        await lives_on(vm, had)


@pytest.mark.skipif(not LONG, reason="half a minute of losses: with --long")
async def test_of_a_guest_that_is_lost_the_new_ones_are_left(
    qemu: str, tmp_path: Path, relay: Relay
) -> None:
    """It ran there, and has written to them."""
    new = folder(tmp_path / "new")

    async def strike(destination: qmpkit.Destination) -> None:
        await relay.hold_ahead(destination.machine)
        os.kill(destination.machine.child.pid, signal.SIGKILL)

    async with leaks():
        async with qmpkit.running(counting(qemu, tmp_path, memory=LARGE)) as vm:
            await vm.console.expect(".")
            await write(vm, "disk0", 0, 5)
            async with (
                qmpkit.receiving(vm, disks=new) as destination,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(strike, destination)
                with pytest.raises(MigrationLost):
                    await vm.migrate(destination, policy=AT_ONCE, options=BY_RELAY)
        assert names_in(new) == ["qcow2.img", "raw.img"]
        async with qmpkit.running(attrs.evolve(destination.spec, name="again")) as vm:
            await vm.console.expect(".")
    await holds(str(new / "qcow2.img"), "qcow2", {0: 5})


@pytest.mark.skipif(not LONG, reason="half a minute of losses: with --long")
async def test_a_kept_one_that_is_lost_starts_again_on_the_new_ones(
    qemu: str, places: Places, tmp_path: Path, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, runs = folder(tmp_path / "new"), relay.held_ahead(monkeypatch)
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path, memory=LARGE))
            await runs_on(kept, 0)

            async def strike() -> None:
                await runs.wait()
                heir = kept.record.heir
                assert heir is not None
                await trio.to_thread.run_sync(kill, heir.identity.pid)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(strike)
                with pytest.raises(MigrationLost):
                    await supervisor.migrate("mover", policy=AT_ONCE, options=BY_RELAY, disks=new)
            await runs_on(kept, 0)
            await kept.until(lambda: kept.record.change is None)
            assert {Path(disk.file).parent for disk in kept.spec.disks} == {new}
            assert kept.vm is not None
            await nothing_left(kept.vm)
        await end_all()
    assert names_in(new) == ["qcow2.img", "raw.img"]
    await holds(str(new / "qcow2.img"), "qcow2", {1: 6})
