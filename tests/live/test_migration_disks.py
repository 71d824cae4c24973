"""Disks that go along with a machine that migrates, each into an image of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import qmpkit
from qmpkit import (
    VM,
    CannotMigrate,
    Disk,
    HostLacks,
    MigrationFailed,
    MigrationOptions,
    Round,
    State,
    Step,
    images,
)
from qmpkit.spec.block import DiskInterface
from qmpkit.spec.encryption import Luks
from qmpkit.testing.leaks import leaks
from tests.conftest import binaries
from tests.live.blocks import BLOCK, holds, nothing_left, write
from tests.live.counting import counted
from tests.live.migrating import counting, lives_on
from tests.live.small_disk import small_disk
from tests.sizes import DISK_MOVES, LONG, NEWEST, OLDEST, QEMU_VERSIONS

pytestmark = pytest.mark.live

INTERFACES: tuple[DiskInterface, ...] = (*(("virtio-blk",) if LONG else ()), "virtio-scsi")
# Enough for what a test's disks hold, and never for the memory.
NEVER = MigrationOptions(max_bandwidth="300KiB", downtime=0.001)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def names_in(path: Path) -> list[str]:
    return sorted(it.name for it in path.iterdir())


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_there_with_its_disks(qemu: str, tmp_path: Path) -> None:
    seen: list[Round] = []
    new = folder(tmp_path / "new")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        await write(vm, "disk0", 0, 5)
        await write(vm, "disk1", 2, 9)
        had = await counted(vm)
        async with qmpkit.receiving(vm, disks=new) as destination:
            took = await vm.migrate(destination, progress=seen.append)
            there = destination.vm
            assert 0 < took.downtime < took.seconds
            await lives_on(there, had)
            for before, after in zip(vm.spec.disks, there.spec.disks, strict=True):
                name = Path(before.file).name
                assert (after.file, after.origin) == (str(new / name), before.file)
                assert [it.file for it in await there.disks.chain(after.id)] == [after.file]
    assert names_in(tmp_path) == ["new", "qcow2.img", "raw.img"]
    await holds(str(new / "qcow2.img"), "qcow2", {0: 5, 1: 0, 3: 7})
    await holds(str(new / "raw.img"), "raw", {2: 9, 3: 7})
    await holds(str(tmp_path / "qcow2.img"), "qcow2", {0: 5, 3: 0})
    await holds(str(tmp_path / "raw.img"), "raw", {2: 9, 3: 0})
    assert (new / "raw.img").stat().st_blocks * 512 < 1 << 20, "its zeroes take space"
    copied = [now for now in seen if now.number == 0]
    assert [it.disk for it in copied[-1].disks] == ["disk0", "disk1"]
    assert copied[-1].remaining == 0 and copied[-1].total >= 2 * 65536
    assert seen[-1].number >= 1 and seen[-1].disks == ()


@pytest.mark.qemus(*OLDEST)
async def test_its_layer_and_the_bitmaps_go_along(qemu: str, tmp_path: Path) -> None:
    """A base stays where it is, and the next backup is incremental, and right."""
    new, last, backup = folder(tmp_path / "new"), folder(tmp_path / "last"), tmp_path / "backup"
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        await write(vm, "disk0", 0, 5)
        await vm.snapshots.take("one")
        await write(vm, "disk0", 1, 6)
        await vm.backups.run(backup)
        await write(vm, "disk0", 2, 7)
        had = await counted(vm)
        async with qmpkit.receiving(vm, disks=new) as failing:
            with pytest.raises(MigrationFailed, match="enough"):
                await vm.migrate(failing, policy=lambda _: Step(give_up="enough"), options=NEVER)
            assert names_in(new) == []
        await nothing_left(vm)
        async with qmpkit.receiving(vm, disks=new) as destination:
            await vm.migrate(destination)
            there = destination.vm
            await lives_on(there, had)
            layers = [Path(it.file) for it in await there.disks.chain("disk0")]
            assert layers[1:] == [tmp_path / "qcow2.img"] and layers[0].parent == new
            point = await there.backups.run(backup, mode="incremental", compare=True)
            assert all(layer.parent is not None for layer in point.disks.values())
            async with qmpkit.receiving(there, disks=last, collapse=True) as whole:
                await there.migrate(whole)
                assert len(await whole.vm.disks.chain("disk0")) == 1
                await whole.vm.backups.run(backup, mode="incremental", compare=True)
                await lives_on(whole.vm, had)
    assert len(names_in(last)) == 2
    top = last / layers[0].name
    await holds(str(top), "qcow2", {0: 5, 1: 6, 2: 7, 3: 7})
    await holds(str(layers[0]), "qcow2", {0: 5, 1: 6, 2: 7, 3: 7})


@pytest.mark.qemus(*DISK_MOVES)
async def test_a_snapshot_below_can_be_deleted_there(qemu: str, tmp_path: Path) -> None:
    new = folder(tmp_path / "new")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        await vm.snapshots.take("one")
        await write(vm, "disk0", 1, 6)
        had = await counted(vm)
        async with qmpkit.receiving(vm, disks=new) as destination:
            await vm.migrate(destination)
            await destination.vm.snapshots.delete("one")
            await lives_on(destination.vm, had)
            assert destination.vm.spec.disks[0].file == str(tmp_path / "qcow2.img")
    assert names_in(new) == []
    await holds(str(tmp_path / "qcow2.img"), "qcow2", {1: 6, 3: 7})


@pytest.mark.skipif(not LONG, reason="seconds of deriving keys: with --long")
@pytest.mark.qemus(*DISK_MOVES)
@pytest.mark.parametrize("base", [False, True])
async def test_encrypted_and_standing_still(qemu: str, base: bool, tmp_path: Path) -> None:
    """The new image is encrypted by the same secret; one disk goes, the other stays."""
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("a secret of some length")
    luks = Luks(str(key), iter_time=10)
    secret = Disk(str(tmp_path / "secret"), format="qcow2", make="1MiB", luks=luks)
    plain = Disk(str(tmp_path / "plain"), format="raw", make="1MiB")
    other = tmp_path / "other"
    spec = counting(qemu, tmp_path, disks=[plain, secret])
    async with leaks():
        async with qmpkit.running(spec) as vm:
            await vm.console.expect(".")
            await write(vm, "disk1", 0, 5)
            if base:
                await vm.snapshots.take("one")
            await write(vm, "disk1", 1, 6)
            await vm.pause()
            had = await counted(vm)
            async with qmpkit.receiving(vm, disks={"disk1": other}) as destination:
                await vm.migrate(destination)
                there = destination.vm
                assert there.state is State.PAUSED and await counted(there) == had
                assert [it.file for it in there.spec.disks] == [vm.spec.disks[0].file, str(other)]
                assert len(await there.disks.chain("disk1")) == 1 + base
                for block, pattern in ((0, 5), (1, 6)):
                    assert await reads(there, "disk1", block, pattern)
                await there.resume()
                await lives_on(there, had)
        assert (await images.info(other, format="qcow2")).encrypted
        raw = other.read_bytes()
        assert bytes([5] * 512) not in raw and bytes([6] * 512) not in raw


async def reads(vm: VM, disk: str, block: int, pattern: int) -> bool:
    where = f"-d /machine/peripheral/{disk}/virtio-backend"
    line = f'qemu-io {where} "read -P {pattern} {block * BLOCK} {BLOCK}"'
    said = await vm.execute("human-monitor-command", {"command-line": line})
    return "verification failed" not in str(said)


@pytest.mark.qemus(*QEMU_VERSIONS)
@pytest.mark.parametrize("interface", INTERFACES)
async def test_a_disk_with_a_thread(qemu: str, interface: DiskInterface, tmp_path: Path) -> None:
    """Of a SCSI disk before 9.0, QEMU would abort, and it is told before it is begun."""
    file = str(tmp_path / "disk")
    disk = Disk(file, format="qcow2", make="1MiB", iothread="io", interface=interface)
    new = folder(tmp_path / "new")
    async with leaks(), qmpkit.running(counting(qemu, tmp_path, disks=[disk])) as vm:
        await vm.console.expect(".")
        if interface == "virtio-scsi" and qemu == binaries()["7.2"]:
            (fault,) = await vm.migration_faults(disks=new)
            assert "with which QEMU before 9.0 takes in no disk" in fault.message
            with pytest.raises(CannotMigrate, match="iothread"):
                async with qmpkit.receiving(vm, disks=new):
                    pass
            assert names_in(new) == []
            return
        async with qmpkit.receiving(vm, disks=new) as destination:
            await vm.migrate(destination)
            await nothing_left(destination.vm)
            await destination.vm.console.reader().expect(".")


@pytest.mark.qemus(*OLDEST)
async def test_what_does_not_go_along_is_told_at_once(qemu: str, tmp_path: Path) -> None:
    new = folder(tmp_path / "new")
    (tmp_path / "seed.img").write_bytes(bytes(65536))
    read = Disk(str(tmp_path / "seed.img"), format="raw", readonly=True)
    two = [Disk(str(tmp_path / name), format="qcow2", make="1MiB") for name in ("a", "b")]
    async with leaks(), qmpkit.running(counting(qemu, tmp_path, disks=[*two, read])) as vm:
        await vm.console.expect(".")
        (new / "b").touch()
        bad = {"disk0": tmp_path / "none" / "x", "disk1": new / "b", "disk2": new / "c"}
        with pytest.raises(CannotMigrate) as told:
            async with qmpkit.receiving(vm, disks={**bad, "disk9": new / "d"}):
                pass
        where = sorted(fault.path for fault in told.value.faults)
        assert where == [f"disks.disk{number}" for number in (0, 1, 2, 9)]
        both = {"disk0": new / "a", "disk1": new / "a"}
        (fault,) = await vm.migration_faults(disks=both)
        assert "of 'disk0' too" in fault.message
        assert not await vm.migration_faults(disks={"disk0": new / "a"})
        async with qmpkit.receiving(vm, disks={"disk0": new / "a"}) as destination:
            assert names_in(new) == ["a", "b"]
            await vm.disks.resize("disk0", "2MiB")
            with pytest.raises(CannotMigrate, match="it has changed since its new image was made"):
                await vm.migrate(destination)
        await vm.snapshots.save("inside")
        (fault,) = await vm.migration_faults(disks={"disk0": new / "a"})
        assert "holds the snapshots inside" in fault.message
        assert names_in(new) == ["b"]


@pytest.mark.qemus(*NEWEST)
async def test_there_has_to_be_room(qemu: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as small:
        async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
            await vm.console.expect(".")
            await write(vm, "disk0", 0, 5, count=32)
            with pytest.raises(HostLacks, match="the disks would take"):
                async with qmpkit.receiving(vm, disks=small.path):
                    pass
            faults = await vm.migration_faults(disks=small.path)
            assert [fault.path for fault in faults] == ["disks"]
            assert names_in(small.path) == []
            await nothing_left(vm)
