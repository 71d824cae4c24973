"""Snapshots of the disks with the RAM in a file beside them: taken, gone back to, undone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest

import qmpkit
from qmpkit import JobFailed, LaunchFailed, SpecInvalid, State
from qmpkit.images.new import place_layer
from qmpkit.machine.ledger import Change
from qmpkit.machine.saved_state import save_state
from qmpkit.operations.block.layers import layer_blockdevs
from qmpkit.operations.block.recovery import recover
from qmpkit.operations.jobs import JobProgress
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, nothing_left, write
from tests.live.counting import counted, counting
from tests.live.dying import STEPS, dies
from tests.live.kept import Places, end_all, lab
from tests.live.small_disk import small_disk
from tests.sizes import NEWEST, OLDEST, RAM_CANCELS, RAM_KILLED

pytestmark = pytest.mark.live


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.qemus(*OLDEST)
async def test_the_guest_goes_on_where_it_was(qemu: str, tmp_path: Path) -> None:
    async with leaks():
        async with qmpkit.running(counting(qemu, tmp_path, "qcow2", "raw")) as vm:
            await vm.console.expect("..")
            await write(vm, "disk0", 0, 1)
            seen: list[JobProgress] = []
            first = await counted(vm)
            point = await vm.snapshots.take("one", ram=True, progress=seen.append)
            last = await counted(vm)
            assert vm.state is State.RUNNING
            assert point == vm.snapshots.list()[0] and 0 < point.pause < 30
            assert point.memory == str(tmp_path / "0.one.ram")
            found = (tmp_path / "0.one.ram").stat()
            assert found.st_mode & 0o777 == 0o600
            assert seen[-1].state.status == "completed" and seen[-1].state.fraction == 1.0
            assert (await vm.snapshots.sizes())["one"] > found.st_size / 2
            await write(vm, "disk0", 0, 2)
            await write(vm, "disk1", 0, 2)
            await nothing_left(vm)
            with pytest.raises(SpecInvalid, match="stop the machine and revert it"):
                await vm.snapshots.load("one")
            await vm.snapshots.rename("one", "eins")
            async with vm.paused():
                paused = await counted(vm)
                await vm.snapshots.take("half", ram=True)
                assert vm.state.value == "paused" and await counted(vm) < 2 * paused
                await vm.snapshots.take("two", ram=True)
            await vm.console.expect("..")
            spec = vm.spec
        back = await qmpkit.reverted(spec, "eins")
        assert back.resume_from == point.memory
        async with qmpkit.running(back, paused=True) as vm:
            assert vm.state is State.PAUSED and vm.spec.resume_from is None
            assert first <= await counted(vm) <= last
            before = await counted(vm)
            await vm.resume()
            await vm.console.expect("..")
            assert await counted(vm) > before
            await write(vm, "disk0", 1, 3)
            tops = [disk.file for disk in vm.spec.disks]
            went_on = vm.spec
            with pytest.raises(SpecInvalid, match="delete half first"):
                await vm.snapshots.delete("eins")
        await holds(tops[0], "qcow2", {0: 1, 1: 3})
        with pytest.raises(SpecInvalid, match="was written to since the snapshot whose RAM it is"):
            async with qmpkit.running(back):
                pass
        async with qmpkit.running(went_on, paused=True):
            pass
        again = await qmpkit.reverted(spec, "two")
        async with qmpkit.running(again, paused=True) as vm:
            assert await counted(vm) >= paused
            await vm.snapshots.delete("two")
            await vm.snapshots.delete("half")
            await nothing_left(vm)
            assert not (tmp_path / "0.two.ram").exists() and (tmp_path / "0.one.ram").exists()
            await vm.snapshots.delete("eins")
            await nothing_left(vm)
            assert not (tmp_path / "0.one.ram").exists()
            tops = [disk.file for disk in vm.spec.disks]
        await holds(tops[0], "qcow2", {0: 2})
        await holds(tops[1], "raw", {0: 2})


@pytest.mark.qemus(*NEWEST)
async def test_what_cannot_be_is_refused(qemu: str, tmp_path: Path) -> None:
    spec = counting(qemu, tmp_path, "qcow2")
    async with qmpkit.running(spec) as vm:
        with pytest.raises(SpecInvalid) as told:
            await vm.snapshots.take("one", ram=True, freeze=True, disks=["disk0"])
        assert [fault.path for fault in told.value.faults] == ["disks", "freeze"]
        (tmp_path / "0.one.ram").touch()
        with pytest.raises(SpecInvalid, match=r"0\.one\.ram' is there already"):
            await vm.snapshots.take("one", ram=True)
        (tmp_path / "0.one.ram").unlink()
        await vm.snapshots.take("one", ram=True)
        spec = vm.spec
    async with qmpkit.at_rest(spec) as machine:
        with pytest.raises(SpecInvalid, match="there is no memory"):
            await machine.snapshots.take("two", ram=True)
    back = await qmpkit.reverted(spec, "one")
    async with qmpkit.at_rest(back) as machine:
        with pytest.raises(SpecInvalid, match="is to go on with its memory"):
            await machine.snapshots.delete("one")
    with pytest.raises(LaunchFailed, match="as it was at the snapshot, or go back without"):
        async with qmpkit.running(attrs.evolve(back, memory="24MiB")):
            pass
    assert (await qmpkit.reverted(spec, "one", memory=False)).resume_from is None


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_nothing_of_it_is_left(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path, "qcow2")) as vm:
        names = names_in(tmp_path)

        async def take() -> None:
            await vm.snapshots.take("one", ram=True)

        async def after() -> None:
            assert vm.state is State.RUNNING
            assert (await vm.execute("query-migrate")).get("status") != "active"
            if vm.snapshots.list():
                assert names_in(tmp_path) == ["0.one.qcow2", "0.one.ram", *names]
                await vm.snapshots.delete("one")
            assert names_in(tmp_path) == names
            await nothing_left(vm)

        await cancel_at_every_checkpoint(take, every=RAM_CANCELS, after=after)


@pytest.mark.qemus(*NEWEST)
async def test_a_full_disk_takes_no_memory(qemu: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as small:
        async with leaks(), qmpkit.running(counting(qemu, tmp_path, "qcow2")) as vm:
            await write(vm, "disk0", 0, 1)
            (small.path / "ballast").write_bytes(bytes(600 << 10))
            before = names_in(small.path)
            with pytest.raises(JobFailed):
                await vm.snapshots.take("one", ram=True, folder=small.path)
            assert vm.state is State.RUNNING and vm.spec.snapshots == ()
            assert names_in(small.path) == before
            await nothing_left(vm)


@pytest.mark.qemus(*NEWEST)
async def test_what_nobody_ended_is_taken_back(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(counting(qemu, tmp_path, "qcow2")) as vm:
        begun, names = vm.spec, names_in(tmp_path)
        memory = tmp_path / "0.one.ram"
        memory.touch()
        made = await snapshots_steps(vm, tmp_path / "0.one.qcow2")
        change = Change(
            what="take",
            spec=attrs.evolve(begun, snapshot="one"),
            begun=begun,
            sure=True,
            nodes=made,
            files=(str(tmp_path / "0.one.qcow2"),),
            memory=str(memory),
            halted=True,
        )
        await vm.pause()
        assert await save_state(vm.machine, memory, flags=os.O_WRONLY) == ""
        inodes = tuple(path.stat().st_ino for path in (tmp_path / "0.one.qcow2", memory))
        assert await recover(vm.machine, attrs.evolve(change, inodes=inodes)) == begun
        await vm.wait_running()
        assert names_in(tmp_path) == names
        await nothing_left(vm)


async def snapshots_steps(vm: qmpkit.VM, file: Path) -> tuple[str, ...]:
    """A layer that is made for the disk and not yet above it; its nodes."""
    await place_layer(file, vm.spec.disks[0].file, "qcow2", 16 << 20)
    layer = attrs.evolve(vm.spec.disks[0], file=str(file), node="qk-disk0-1", make=None)
    for blockdev in layer_blockdevs(layer):
        await vm.execute("blockdev-add", blockdev)
    return ("qk-disk0-1", "qk-disk0-1-file")


PROGRAM = (
    STEPS
    + """
step("qmpkit.process.kept:KeptChild", "keep")
step("qmpkit.supervisor.life", "used_up")

async def main():
    global armed
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        armed = True
        await lab.declare("bare", "running")
        print("done", flush=True)

trio.run(main)
"""
)


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("last", RAM_KILLED)
async def test_a_kept_machine_goes_on_once(
    qemu: str, places: Places, tmp_path: Path, last: int
) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    spec = counting(qemu, disks, "qcow2")
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, restart="never")
            vm: Any = kept.vm
            await write(vm, "disk0", 0, 1)
            await vm.snapshots.take("one", ram=True)
            at = await counted(vm)
            while await counted(vm) < 3 * at:
                await vm.console.expect(".")
            await write(vm, "disk0", 0, 2)
            await supervisor.declare("bare", "stopped")
            await supervisor.revert("bare", "one")
            assert kept.spec.resume_from == str(disks / "0.one.ram")
        assert await dies(PROGRAM, last=last)
        async with lab() as supervisor:
            kept = supervisor.kept["bare"]
            await kept.wait_running()
            assert kept.spec.resume_from is None
            vm = kept.vm
            assert vm.spec.resume_from is None
            assert await counted(vm) > at / 2
            await write(vm, "disk0", 1, 3)
            await supervisor.declare("bare", "stopped")
            await supervisor.declare("bare", "running")
            vm = kept.vm
            assert await counted(vm) < at, "it has booted"
            await supervisor.declare("bare", "stopped")
            (disk,) = kept.spec.disks
        await end_all()
    await holds(disk.file, "qcow2", {0: 1, 1: 3})
