"""Disks on their way that do not arrive: the machine runs on with its own, and nothing is left."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, MachineDied, MigrationFailed, MigrationUnknown, Round, State
from qmpkit.operations.migration.storage import DiskPlaces
from qmpkit.qmp.session import Direction
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, nothing_left, write
from tests.live.counting import counted
from tests.live.migrating import At, counting, dies_of_running, lives_on
from tests.live.small_disk import small_disk
from tests.live.test_migration_disks import NEVER, folder, names_in
from tests.sizes import DISK_CANCELS, DISK_MOVES, LONG, NEWEST

pytestmark = pytest.mark.live

# At which messages the destination is killed, by whose monitor they pass; CI has some.
_MORE = ("blockdev-add", "blockdev-mirror", "query-jobs", "blockdev-del", "migrate")
AT_SOURCE = ("block-job-cancel", *(_MORE if LONG else ()))
_THERE: tuple[tuple[str, Direction], ...] = (
    ("nbd-server-stop", "sent"),
    ("block-export-add", "sent"),
)
AT_DESTINATION = _THERE if LONG else _THERE[:1]
AT_KILL = ("block-job-cancel", *(("blockdev-mirror", "migrate-continue") if LONG else ()))


async def still_here(vm: VM, had: int, new: Path) -> None:
    """It is as it was, with its disks, and moves with them when it is asked again."""
    assert names_in(new) == [] and vm.report is None
    assert not await vm.execute("query-block-exports")
    await lives_on(vm, had)
    async with qmpkit.receiving(vm, disks=new) as again:
        await vm.migrate(again)
        await lives_on(again.vm, had)


@pytest.mark.qemus(*DISK_MOVES)
@pytest.mark.parametrize("command", AT_SOURCE)
async def test_the_destination_dies_of_what_the_source_is_told(
    qemu: str, command: str, tmp_path: Path
) -> None:
    at, new = At(command), folder(tmp_path / "new")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path), options=at.options) as vm:
        await vm.console.expect(".")
        await write(vm, "disk0", 0, 5, count=64)
        had = await counted(vm)
        async with qmpkit.receiving(vm, disks=new) as destination:
            at.victim = destination.machine.child.pid
            with pytest.raises(MigrationFailed, match="is as it was"):
                await vm.migrate(destination)
            assert at.has_come
        at.victim = None
        await still_here(vm, had, new)


@pytest.mark.qemus(*DISK_MOVES)
@pytest.mark.parametrize(("word", "direction"), AT_DESTINATION)
async def test_the_destination_dies_of_what_it_is_told(
    qemu: str, word: str, direction: Direction, tmp_path: Path
) -> None:
    at, new = At(word, direction), folder(tmp_path / "new")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm, disks=new, options=at.options) as destination:
            at.victim = destination.machine.child.pid
            with pytest.raises(MigrationFailed, match="is as it was"):
                await vm.migrate(destination)
            assert at.has_come
        await still_here(vm, had, new)


@pytest.mark.skipif(not LONG, reason="either outcome is tested by itself in CI: with --long")
@pytest.mark.qemus(*DISK_MOVES)
async def test_the_destination_dies_when_all_is_there(qemu: str, tmp_path: Path) -> None:
    """It may be dead by then, or told to run as it dies."""
    at, new = At("completed", "received"), folder(tmp_path / "new")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm, disks=new, options=at.options) as destination:
            at.victim = destination.machine.child.pid
            with pytest.raises((MigrationFailed, MigrationUnknown)) as caught:
                await vm.migrate(destination)
            assert at.has_come
        if isinstance(caught.value, MigrationFailed):
            await still_here(vm, had, new)
            return
        assert vm.state is State.PAUSED and vm.report is None
        assert names_in(new) == ["qcow2.img", "raw.img"]  # to which it may have written
        await vm.resume()  # its owner's word
        await lives_on(vm, had)


@pytest.mark.qemus(*DISK_MOVES)
@pytest.mark.parametrize("command", AT_KILL)
async def test_the_source_is_killed(qemu: str, command: str, tmp_path: Path) -> None:
    at, new, spec = At(command), folder(tmp_path / "new"), counting(qemu, tmp_path)
    async with leaks():
        with pytest.raises(MachineDied):
            async with qmpkit.running(spec, options=at.options) as vm:
                await vm.console.expect(".")
                await write(vm, "disk0", 0, 5)
                async with qmpkit.receiving(vm, disks=new) as destination:
                    at.victim = vm.pid
                    await vm.migrate(destination)
        assert at.has_come and names_in(new) == []
        async with qmpkit.running(spec) as vm:
            await vm.console.expect(".")
    await holds(str(tmp_path / "qcow2.img"), "qcow2", {0: 5})


@pytest.mark.skipif(not LONG, reason="half a minute of waiting for what hangs: with --long")
@pytest.mark.qemus(*DISK_MOVES)
@pytest.mark.parametrize("late", [False, True])
async def test_the_destination_hangs(qemu: str, late: bool, tmp_path: Path) -> None:
    """Writes of the guest wait for it; a cancellation lets them go on."""
    new = folder(tmp_path / "new")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        async with qmpkit.receiving(vm, disks=new) as destination:
            pid = destination.machine.child.pid

            def hang(now: Round) -> None:
                if bool(now.number) is late:
                    os.kill(pid, signal.SIGSTOP)

            with trio.move_on_after(1.5 if late else 0.5) as scope:
                await vm.migrate(destination, progress=hang, options=NEVER)
            assert scope.cancelled_caught
        await still_here(vm, await counted(vm), new)


@pytest.mark.qemus(*NEWEST)
async def test_a_full_disk(qemu: str, tmp_path: Path) -> None:
    """There was room when it began."""
    with small_disk(tmp_path / "small") as small:
        async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
            await vm.console.expect(".")
            had = await counted(vm)
            places: DiskPlaces = {"disk0": small.path / "new"}
            async with qmpkit.receiving(vm, disks=places) as destination:
                small.fill()
                await write(vm, "disk0", 0, 5)
                with pytest.raises(MigrationFailed, match="No space left on device"):
                    await vm.migrate(destination)
            small.free()
            assert names_in(small.path) == []
            await lives_on(vm, had)


@pytest.mark.qemus(*DISK_MOVES)
async def test_nobody_knows_whether_it_wrote(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the new images, which have all that the old ones have, are there to go on with."""
    new = folder(tmp_path / "new")
    dies_of_running(monkeypatch)
    async with leaks():
        async with qmpkit.running(counting(qemu, tmp_path)) as vm:
            await vm.console.expect(".")
            await write(vm, "disk0", 0, 5)
            async with qmpkit.receiving(vm, disks=new) as destination:
                with pytest.raises(MigrationUnknown):
                    await vm.migrate(destination)
            assert vm.state is State.PAUSED and names_in(new) == ["qcow2.img", "raw.img"]
            await nothing_left(vm)
        again = attrs.evolve(destination.spec, name="again")
        async with qmpkit.running(again) as vm:
            await vm.console.expect(".")
    await holds(str(new / "qcow2.img"), "qcow2", {0: 5})


@pytest.mark.bound(1200 if LONG else 120)
@pytest.mark.qemus(*DISK_MOVES)
async def test_cancelled_anywhere_it_has_one_set_of_disks(qemu: str, tmp_path: Path) -> None:
    new = folder(tmp_path / "new")
    async with leaks(), AsyncExitStack() as stack:
        vms: list[VM] = []

        async def begin() -> None:
            for left in new.iterdir():
                left.unlink()
            vms.append(await stack.enter_async_context(qmpkit.running(counting(qemu, tmp_path))))
            await vms[-1].console.expect(".")

        async def move() -> None:
            async with qmpkit.receiving(vms[-1], disks=new) as destination:
                try:
                    await vms[-1].migrate(destination)
                finally:
                    moved = destination.arrived.is_set()
                    assert (vms[-1].report is None) is not moved
                    assert destination.machine.state is State.RUNNING or not moved

        async def after() -> None:
            if vms[-1].report is None:
                assert names_in(new) == []
                await lives_on(vms[-1], 1)
            else:
                await holds(str(new / "qcow2.img"), "qcow2", {})
                await begin()

        await begin()
        cancelled = await cancel_at_every_checkpoint(move, every=DISK_CANCELS, after=after)
    assert cancelled > 1
