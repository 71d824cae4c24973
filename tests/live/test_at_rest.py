"""The disks of a machine that is down: the same operations, and nothing left of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import qmpkit
from qmpkit import Disk, ImageInUse, IoLimits, MachineSpec, SpecInvalid, backups, images
from qmpkit.testing.leaks import leaks
from tests.live.blocks import BLOCK, bare, holds, qemu_io, told, write
from tests.live.kept import end_all, lab
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


async def _made(folder: Path) -> MachineSpec:
    """Of two disks, with a pattern in the first block of each."""
    disks = []
    for number, format in enumerate(["qcow2", "raw"]):
        file = str(folder / f"{number}.{format}")
        await images.create(file, "16MiB", format)
        await _write(file, format, 0, 1)
        disks.append(Disk(file, format=format))  # type: ignore[arg-type]
    return MachineSpec(name="down", disks=disks)


async def _write(file: str, format: str, block: int, pattern: int) -> None:
    command = f"write -P {pattern} {block * BLOCK} {BLOCK}"
    done = await qemu_io(file, format, command, readonly=False)
    assert done.returncode == 0, done.stdout


async def test_snapshots_merges_and_moves(tmp_path: Path) -> None:
    async with leaks():
        spec = await _made(tmp_path)
        for number, name in enumerate(["one", "two"], 2):
            async with qmpkit.at_rest(spec) as machine:
                await machine.snapshots.take(name)
                spec = machine.spec
            await _write(spec.disks[0].file, "qcow2", number, number)
        async with qmpkit.at_rest(spec) as machine:
            chain = await machine.disks.chain("disk0")
            names = [Path(layer.file).name for layer in chain]
            assert names == ["0.two.qcow2", "0.one.qcow2", "0.qcow2"]
            await machine.snapshots.delete("one")  # below
            await machine.snapshots.delete("two")  # the one that would be written to
            await machine.disks.move("disk1", tmp_path / "moved.qcow2")
            await machine.disks.resize("disk1", "32MiB")
            await machine.snapshots.take("three", disks=["disk1"])
            await machine.disks.flatten("disk1")
            assert await machine.execute("query-jobs") == []
            spec = machine.spec
    await holds(spec.disks[0].file, "qcow2", {0: 1, 2: 2, 3: 3})
    await holds(spec.disks[1].file, "qcow2", {0: 1})
    assert spec.disks[0].file == str(tmp_path / "0.qcow2")


async def test_backups_go_on_when_the_machine_runs_again(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    spec = bare(qemu, tmp_path, "qcow2", "raw")
    async with leaks():
        for disk in spec.disks:
            await images.create(disk.file, "16MiB", disk.format)
        async with qmpkit.at_rest(spec) as machine:
            first = await machine.backups.run(folder, compare=True)
        async with qmpkit.running(spec, paused=True) as vm:
            await write(vm, "disk0", 1, 7)
            second = await vm.backups.run(folder)
        async with qmpkit.at_rest(spec) as machine:
            third = await machine.backups.run(folder)
            with pytest.raises(SpecInvalid, match="it is down: nothing is to be frozen"):
                await machine.backups.run(folder, freeze=True)
            async with machine.backups.pulling(tmp_path / "pull") as pull:
                assert set(pull.disks) == {"disk0", "disk1"}
        parents = [point.disks["disk0"].parent for point in (first, second, third)]
        assert parents == [None, *(point.disks["disk0"].file for point in (first, second))]
        assert await backups.verify(folder) == ()
        for point, had in ((first, {}), (second, {1: 7}), (third, {1: 7})):
            target = tmp_path / f"{point.number}.qcow2"
            await backups.restore(folder, "disk0", target, point=point.number)
            await holds(str(target), "qcow2", had)


async def test_limits_are_for_the_next_start(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        spec = vm.spec
    async with leaks(), qmpkit.at_rest(spec) as machine:
        await machine.disks.limit("disk0", IoLimits(iops=5))
        spec = machine.spec
    async with qmpkit.running(spec, paused=True) as vm:
        assert await told(vm, "iops", "bps") == [5, 0]


async def test_what_needs_a_running_machine_is_refused(tmp_path: Path) -> None:
    spec = await _made(tmp_path)
    async with leaks(), qmpkit.at_rest(spec) as machine:
        with pytest.raises(SpecInvalid, match="needs a running machine"):
            await machine.execute("snapshot-save")
        with pytest.raises(SpecInvalid, match="nothing is to be frozen"):
            await machine.snapshots.take("one", freeze=True)
        assert machine.spec == spec
        with pytest.raises(ImageInUse, match="qemu-storage"):
            async with qmpkit.at_rest(spec):
                pass
    with pytest.raises(SpecInvalid, match="no disk that it can write to"):
        async with qmpkit.at_rest(MachineSpec(name="bare")):
            pass


@pytest.mark.usefixtures("places")
async def test_of_a_kept_machine_its_record_follows(qemu: str, tmp_path: Path) -> None:
    spec = bare(qemu, tmp_path, "qcow2")
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            await write(kept.vm, "disk0", 0, 1)
            with pytest.raises(SpecInvalid, match="it is up"):
                async with supervisor.at_rest("bare"):
                    pass
            await supervisor.declare("bare", "stopped")
            async with supervisor.at_rest("bare") as machine:
                await machine.snapshots.take("one")
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            assert [it.name for it in kept.vm.snapshots.list()] == ["one"]
            await write(kept.vm, "disk0", 1, 2)
            await supervisor.declare("bare", "stopped")
            (disk,) = kept.spec.disks
        await end_all()
    await holds(disk.file, "qcow2", {0: 1, 1: 2})
