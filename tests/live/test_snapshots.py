"""Disks changed under a machine that runs: every byte stays, and the spec follows."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import ImageFailed, IoLimits, SpecInvalid
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.jobs import JobProgress, jobs_of
from qmpkit.spec.snapshots import tag_of
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import bare, holds, nothing_left, write
from tests.live.small_disk import small_disk
from tests.sizes import NEWEST, QEMU_VERSIONS

pytestmark = pytest.mark.live


def marks(file: Path) -> list[str]:
    """The extended attributes of a file, where it has such."""
    return os.listxattr(file)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_snapshots_of_two_disks_are_taken_and_merged(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2", "raw"), paused=True) as vm:
        for number, name in enumerate(["one", "two", "three"], 1):
            for disk in ("disk0", "disk1"):
                await write(vm, disk, number - 1, number)
            snapshot = await vm.snapshots.take(name, description=f"the {name}")
        assert snapshot.parent == "two"
        assert vm.snapshots.current == "three"
        await vm.snapshots.rename("two", "deux")
        assert [it.parent for it in vm.snapshots.list()] == [None, "one", "deux"]
        await vm.snapshots.rename("deux", "two")
        assert all(size > 0 for size in (await vm.snapshots.sizes()).values())
        points = {point.name: point.disks for point in vm.snapshots.list()}
        seen: list[JobProgress] = []
        await vm.snapshots.delete("two", progress=seen.append)  # in the middle
        assert seen[-1].state.fraction == 1.0
        assert [it.name for it in vm.snapshots.list()] == ["one", "three"]
        three = vm.snapshots.list()[1]
        assert three.parent == "one"
        assert three.disks == points["two"], "the merged layer took the lower one's place"
        await nothing_left(vm)
        await vm.snapshots.delete("three")  # the layer that is written to
        assert [disk.file for disk in vm.spec.disks] == list(points["two"].values())
        await write(vm, "disk0", 3, 4)
        await vm.snapshots.delete("one")
        assert vm.spec.snapshots == () and vm.spec.snapshot is None
        await nothing_left(vm)
        spec = vm.spec
    assert names_in(tmp_path) == ["0.qcow2", "1.raw"]
    assert [disk.origin for disk in spec.disks] == [None, None]
    await holds(spec.disks[0].file, "qcow2", {0: 1, 1: 2, 2: 3, 3: 4})
    await holds(spec.disks[1].file, "raw", {0: 1, 1: 2, 2: 3})


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_a_machine_starts_again_from_the_layers_it_wrote_to(
    qemu: str, tmp_path: Path
) -> None:
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1)
        await vm.snapshots.take("one")
        await write(vm, "disk0", 0, 2)
        spec = vm.spec
    if any("user." in name for name in marks(tmp_path / "0.qcow2")):
        with pytest.raises(SpecInvalid, match="is what a snapshot holds"):
            async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True):
                pass
    async with qmpkit.running(spec, paused=True) as vm:
        chain = await vm.disks.chain("disk0")
        assert [Path(layer.file).name for layer in chain] == ["0.one.qcow2", "0.qcow2"]
        await write(vm, "disk0", 1, 3)
        await vm.snapshots.take("two")
        await vm.snapshots.delete("one")
        await nothing_left(vm)
        (disk,) = vm.spec.disks
        (two,) = vm.spec.snapshots
    await holds(disk.file, "qcow2", {0: 2, 1: 3})
    await holds(two.disks["disk0"], "qcow2", {0: 2, 1: 3})


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_a_disk_moves_grows_and_is_flattened(qemu: str, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "disk.raw"
    target.parent.mkdir()
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1)
        await vm.snapshots.take("one")
        await write(vm, "disk0", 1, 2)
        assert await vm.disks.move("disk0", target, format="raw") == target
        await write(vm, "disk0", 2, 3)
        assert await vm.disks.resize("disk0", "32MiB") == 32 << 20
        await vm.disks.limit("disk0", IoLimits(bps="64MiB"))
        assert [it.size for it in await vm.disks.chain("disk0")] == [32 << 20]
        await nothing_left(vm)
        await vm.snapshots.take("two")
        assert Path(vm.spec.disks[0].file).parent == target.parent, "beside where it is now"
        await write(vm, "disk0", 3, 4)
        await vm.disks.flatten("disk0")
        await vm.snapshots.delete("one")  # which it has left behind
        assert not (tmp_path / "0.qcow2").exists()
        await nothing_left(vm)
        (disk,) = vm.spec.disks
    await holds(str(target), "raw", {0: 1, 1: 2, 2: 3})
    target.unlink()
    await holds(disk.file, "qcow2", {0: 1, 1: 2, 2: 3, 3: 4})


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_disks_and_ram_go_back_together(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2", "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1)
        point = await vm.snapshots.save("ram")
        assert set(point.disks) == {"disk0", "disk1"}
        await write(vm, "disk0", 0, 2)
        await vm.snapshots.rename("ram", "first")
        assert (await vm.snapshots.save("ram")).tag == "ram-2"
        await vm.snapshots.load("first")
        assert vm.snapshots.current == "first"
        await vm.snapshots.delete("first")
        assert await _tags(vm) == {"ram-2"}
        await vm.snapshots.delete("ram")

        async def save() -> None:
            await vm.snapshots.save("again")

        async def forget() -> None:
            assert await _tags(vm) == {tag_of(it) for it in vm.snapshots.list()}
            if vm.snapshots.list():
                await vm.snapshots.delete("again")

        await cancel_at_every_checkpoint(save, every=3, after=forget)
        assert await _tags(vm) == set()
        assert vm.spec.snapshots == ()
        await nothing_left(vm)
        (first, _) = vm.spec.disks
    await holds(first.file, "qcow2", {0: 1})


async def _tags(vm: qmpkit.VM) -> set[str]:
    nodes = await vm.execute("query-named-block-nodes", {"flat": True})
    return {it["name"] for node in nodes for it in node["image"].get("snapshots", ())}


async def test_what_cannot_be_is_refused_before_anything_is_done(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2", "raw"), paused=True) as vm:
        before = vm.spec
        (tmp_path / "0.there.qcow2").write_text("mine")
        (tmp_path / "1.raw.there.qcow2").write_text("mine")
        with pytest.raises(SpecInvalid) as refused:
            await vm.snapshots.take("there", disks=["disk0", "disc1", "disk1"])
        assert len(refused.value.faults) == 3
        assert "did you mean 'disk" in str(refused.value)
        for name in ("", "../x", "a/b", "ä", "x" * 49):
            with pytest.raises(SpecInvalid, match=r"snapshot's name|longer than"):
                await vm.snapshots.take(name)
        with pytest.raises(SpecInvalid, match="none is named"):
            await vm.snapshots.take("none", disks=[])
        with pytest.raises(SpecInvalid, match="a raw image holds no snapshots"):
            await vm.snapshots.save("ram")
        with pytest.raises(SpecInvalid, match="there is no snapshot 'nix'"):
            await vm.snapshots.delete("nix")
        with pytest.raises(SpecInvalid, match="a guest would lose what is beyond"):
            await vm.disks.resize("disk0", "8MiB")
        with pytest.raises(ImageFailed, match="exists"):
            await vm.disks.move("disk0", tmp_path / "0.there.qcow2")
        await vm.snapshots.take("one")
        with pytest.raises(SpecInvalid, match="a snapshot 'one' already"):
            await vm.snapshots.take("one")
        with pytest.raises(SpecInvalid, match="it has no RAM"):
            await vm.snapshots.load("one")
        await vm.snapshots.delete("one")
        await nothing_left(vm)
        assert vm.spec.snapshots == ()
        assert [disk.file for disk in vm.spec.disks] == [disk.file for disk in before.disks]
    assert (tmp_path / "0.there.qcow2").read_text() == "mine"


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_anywhere_a_change_is_done_or_undone(qemu: str, tmp_path: Path) -> None:
    """A snapshot, its merge and a move, each cancelled at every checkpoint there is."""
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        names = (f"n{number}" for number in itertools.count())

        async def snapshot() -> None:
            await vm.snapshots.take(next(names))

        async def merge() -> None:
            if vm.spec.snapshots:
                await vm.snapshots.delete(vm.spec.snapshots[-1].name)

        async def merge_below() -> None:
            if len(vm.spec.snapshots) > 1:
                await vm.snapshots.delete(vm.spec.snapshots[-2].name)

        async def move() -> None:
            await vm.disks.move("disk0", tmp_path / f"{next(names)}.qcow2")

        await write(vm, "disk0", 0, 1)
        await cancel_at_every_checkpoint(snapshot)
        await _as_the_spec_says(vm, tmp_path)
        await write(vm, "disk0", 1, 2)
        await cancel_at_every_checkpoint(merge_below)
        await _as_the_spec_says(vm, tmp_path)
        await cancel_at_every_checkpoint(merge)
        while vm.spec.snapshots:
            await merge()
        await _as_the_spec_says(vm, tmp_path)
        await cancel_at_every_checkpoint(move)
        await nothing_left(vm)
        await write(vm, "disk0", 2, 3)
        (disk,) = vm.spec.disks
    await holds(disk.file, "qcow2", {0: 1, 1: 2, 2: 3})


async def _as_the_spec_says(vm: qmpkit.VM, folder: Path) -> None:
    await nothing_left(vm)
    files = {layer.file for layer in await vm.disks.chain("disk0")}
    assert names_in(folder) == sorted(Path(file).name for file in files)
    known = {file for point in vm.spec.snapshots for file in point.disks.values()}
    assert files == known | {disk.file for disk in vm.spec.disks}


@pytest.mark.qemus(*NEWEST)
async def test_a_full_disk_fails_the_change_and_not_the_machine(qemu: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as small:
        async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
            await write(vm, "disk0", 0, 7, count=64)
            before = vm.spec
            with pytest.raises((JobFailed, ImageFailed), match="No space left"):
                await vm.disks.move("disk0", small.path / "moved.raw", format="raw")
            small.fill()
            with pytest.raises(ImageFailed, match="No space left"):
                await vm.snapshots.take("one", folder=small.path)
            small.free()
            assert list(small.path.iterdir()) == []
            assert vm.spec == before
            await nothing_left(vm)
            await write(vm, "disk0", 64, 8)
    await holds(before.disks[0].file, "qcow2", {0: 7, 63: 7, 64: 8})


@pytest.mark.qemus(*NEWEST)
async def test_a_job_can_be_slowed_and_its_way_is_told(qemu: str, tmp_path: Path) -> None:
    spec = bare(qemu, tmp_path, "qcow2")
    disk = attrs.evolve(spec.disks[0], make="128MiB")
    async with qmpkit.running(attrs.evolve(spec, disks=[disk]), paused=True) as vm:
        await write(vm, "disk0", 0, 1, count=1792)
        seen: list[JobProgress] = []
        with trio.CancelScope() as scope:

            def told(progress: JobProgress) -> None:
                seen.append(progress)
                if progress.rate is not None:
                    scope.cancel()

            await vm.disks.move("disk0", tmp_path / "slow.qcow2", speed=1 << 20, progress=told)
        assert scope.cancelled_caught
        assert seen[-1].left is not None
        assert 0 < seen[-1].state.fraction < 1, seen
        assert await jobs_of(vm.machine) == []
        assert not (tmp_path / "slow.qcow2").exists()


@pytest.mark.qemus(*NEWEST)
async def test_a_guest_freezes_for_the_moment_and_goes_on(qemu: str, tmp_path: Path) -> None:
    spec = attrs.evolve(
        qmpkit.load_profile("tiny"),
        qemu=qemu,
        accel="tcg",
        disks=[qmpkit.Disk(str(tmp_path / "a.qcow2"), format="qcow2", make="64MiB")],
    )
    async with qmpkit.running(spec) as vm:
        await vm.agent.wait_ready()
        make = "mkdir -p /mnt && mke2fs -q /dev/vda && mount /dev/vda /mnt"
        await vm.agent.run(["sh", "-c", make], check=True)
        await vm.agent.run(["sh", "-c", "echo safe > /mnt/file"], check=True)
        point = await vm.backups.run(tmp_path / "backups", freeze=True)
        assert point.frozen
        await vm.snapshots.take("frozen", freeze=True)
        await vm.agent.run(["sh", "-c", "echo more > /mnt/more && sync"], check=True)
        async with vm.agent.frozen() as count:
            assert count >= 1
        await vm.agent.run(["sh", "-c", "echo even > /mnt/even && sync"], check=True)
        with pytest.raises(qmpkit.GuestRefused, match=r"took more than 0.2 s"):
            async with vm.agent.frozen(longest=0.2):
                await trio.sleep_forever()
        await _served_from_a_full_folder(vm, tmp_path)
        done = await vm.agent.run(["sh", "-c", "cat /mnt/file /mnt/more /mnt/even"], check=True)
        assert done.text.split() == ["safe", "more", "even"]
    raw = await qmpkit.backups.restore(tmp_path / "backups", "disk0", tmp_path / "r", format="raw")
    argv = ["debugfs", "-R", "cat /file", str(raw)]
    shown = await trio.run_process(argv, capture_stdout=True, capture_stderr=True)
    assert shown.stdout == b"safe\n", "only the freezing has flushed it"


async def _served_from_a_full_folder(vm: qmpkit.VM, folder: Path) -> None:
    """What the guest overwrites finds no room: the serving ends, and its write goes on."""

    async def wrote(source: str) -> None:
        command = f"dd if=/dev/{source} of=/mnt/large bs=1M count=4 conv=notrunc,fsync"
        await vm.agent.run(["sh", "-c", command], check=True)

    await wrote("urandom")
    with small_disk(folder / "small") as small:
        with pytest.raises(JobFailed, match="a write of the guest failed by that"):
            async with vm.backups.pulling(small.path / "pull"):
                await wrote("zero")
        assert list(small.path.iterdir()) == []
        await nothing_left(vm)
    await vm.wait_running()
    await wrote("zero")
    assert "I/O error" not in (await vm.agent.run(["dmesg"], check=True)).text
