"""Backups of a machine that runs: every point restores to what the guest had then."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, SpecInvalid, backups, images
from qmpkit.operations.jobs import JobProgress
from tests.live.backup_folders import (
    files_there,
    io,
    make_of_first_schema,
    ours,
    restored,
)
from tests.live.blocks import BLOCK, bare, nothing_left, write
from tests.sizes import BACKUP_POINTS, NEWEST, QEMU_VERSIONS

pytestmark = pytest.mark.live

BLOCKS = 16 * 16  # of a disk of 16 MiB


async def changed(vm: qmpkit.VM, expected: dict[int, int], rng: random.Random) -> int:
    """Write, zero and trim blocks at random; how many of them."""
    blocks = rng.sample(range(BLOCKS), 8)
    for block in blocks:
        deed = rng.choice(["write", "write", "zero", "trim"])
        expected[block] = rng.randrange(1, 256) if deed == "write" else 0
        flags = {"write": f"-P {expected[block]}", "zero": "-z", "trim": "-z -u"}[deed]
        await io(vm, "disk0", f"write {flags} {block * BLOCK} {BLOCK}")
    await io(vm, "disk0", "flush")
    return len(blocks)


@pytest.mark.bound(60 + 4 * BACKUP_POINTS)
@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_every_point_restores_and_the_kept_ones_after_a_prune(
    qemu: str, qemu_img: str, tmp_path: Path
) -> None:
    folder, rng = tmp_path / "backups", random.Random(1)
    expected: dict[int, int] = dict.fromkeys(range(BLOCKS), 0)
    had: dict[int, dict[int, int]] = {}
    spec = bare(qemu, tmp_path, "qcow2", "raw")
    async with qmpkit.running(spec, paused=True) as vm:
        for number in range(1, BACKUP_POINTS + 1):
            dirty = await changed(vm, expected, rng)
            await write(vm, "disk1", 0, number)
            point = await vm.backups.run(folder, compress=number % 2 == 0)
            assert point.number == number
            had[number] = dict(expected)
            layer = point.disks["disk0"]
            if number > 1:
                assert layer.parent and not layer.why, point.why
                # The metadata of an empty qcow2 are five clusters.
                assert (
                    folder / layer.file
                ).stat().st_blocks * 512 <= 1.1 * dirty * BLOCK + 5 * BLOCK
            assert "raw image holds no dirty bitmap" in point.disks["disk1"].why
            await nothing_left(vm)
            assert len(await ours(vm)) == 1
        spec = vm.spec
    async with qmpkit.running(spec, paused=True) as vm:  # the bitmap has waited in the image
        await changed(vm, expected, rng)
        point = await vm.backups.run(folder, mode="auto")
        assert point.disks["disk0"].parent is not None, point.why
        had[point.number] = dict(expected)
    assert await backups.compare(folder, "disk0", spec.disks[0].file, format="qcow2")
    assert not await backups.compare(folder, "disk0", spec.disks[0].file, format="qcow2", point=1)
    await _all_hold(folder, had)
    gone = await backups.prune(folder, keep_last=2, dry_run=True)
    assert [point.number for point in gone] == sorted(had)[:-2]
    assert gone == await backups.prune(folder, keep_last=2)
    had = {number: had[number] for number in sorted(had)[-2:]}
    await _all_hold(folder, had)
    assert len(files_there(folder)) == 4
    assert await backups.prune(folder, keep_last=1, weekly=1) != ()
    (last,) = await backups.points(folder)
    assert last.kind == "full"
    async with qmpkit.running(spec, paused=True) as vm:  # a pruned chain goes on
        await changed(vm, expected, rng)
        point = await vm.backups.run(folder, mode="auto")
        assert point.disks["disk0"].parent is not None, point.why
    await _all_hold(folder, {last.number: had[last.number], point.number: expected})


async def _all_hold(folder: Path, had: dict[int, dict[int, int]]) -> None:
    assert [point.number for point in await backups.points(folder)] == sorted(had)
    assert await backups.verify(folder) == ()
    for number, expected in had.items():
        await restored(folder, "disk0", number, expected)


@pytest.mark.qemus(*NEWEST)
async def test_an_incremental_backup_is_as_small_as_what_changed(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1, count=BLOCKS)
        await vm.backups.run(folder)
        for block in range(0, BLOCKS, 4):
            await io(vm, "disk0", f"write -P 2 {block * BLOCK} {BLOCK}")
        point = await vm.backups.run(folder, mode="incremental")
    taken = (folder / point.disks["disk0"].file).stat().st_blocks * 512
    assert taken <= 1.1 * BLOCK * BLOCKS / 4


@pytest.mark.qemus(*NEWEST)
async def test_what_has_no_bitmap_any_more_is_copied_whole_and_said(
    qemu: str, tmp_path: Path
) -> None:
    folder, expected = tmp_path / "backups", {0: 1}
    had: dict[int, dict[int, int]] = {}

    async def backed_up(said: str | None) -> None:
        expected[len(had) + 1] = len(had) + 1
        await write(vm, "disk0", len(had) + 1, len(had) + 1)
        point = await vm.backups.run(folder)
        assert (point.kind == "incremental") == (said is None), point.why
        assert (said or "") in point.why
        had[point.number] = dict(expected)
        await nothing_left(vm)
        (top, *_) = await vm.disks.chain("disk0")
        assert len(top.bitmaps) == 1

    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1)
        await backed_up("")
        await vm.disks.resize("disk0", "32MiB")
        await backed_up(None)
        await vm.snapshots.take("one")
        with pytest.raises(SpecInvalid, match=r"disk0: its dirty bitmap is gone.*mode=.auto"):
            await vm.backups.run(folder, mode="incremental")
        point = await vm.backups.run(folder)
        assert point.kind == "full" and "a snapshot" in point.why
        had[point.number] = dict(expected)
        await backed_up(None)
        await vm.snapshots.delete("one")
        await backed_up("its dirty bitmap is gone")
        await vm.disks.move("disk0", tmp_path / "moved.qcow2")
        await backed_up("its dirty bitmap is gone")
        (folder / (await backups.points(folder))[-1].disks["disk0"].file).rename(tmp_path / "aside")
        await backed_up("is not there any more")
        (tmp_path / "aside").rename(folder / (await backups.points(folder))[-2].disks["disk0"].file)
        spec = vm.spec
        await vm.kill()
    async with qmpkit.running(spec, paused=True) as vm:
        await backed_up("QEMU was killed before it was stored there")
    async with qmpkit.running(spec, paused=True) as vm:
        await backed_up(None)
        await vm.quit()
    async with qmpkit.running(spec, paused=True) as vm:
        await vm.kill()
    async with qmpkit.running(spec, paused=True) as vm:
        await backed_up("bitmap may lack changes: QEMU was killed")
        await vm.backups.forget()
        assert await ours(vm) == set()
    assert await backups.verify(folder) == ()
    for number, blocks in had.items():
        await restored(folder, "disk0", number, blocks)


@pytest.mark.qemus(*NEWEST)
async def test_backups_with_the_checksums_of_before_go_on(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        for number in (1, 2):
            await write(vm, "disk0", number, number)
            await vm.backups.run(folder)
        make_of_first_schema(folder)
        assert await backups.verify(folder) == ()
        await write(vm, "disk0", 3, 3)
        assert (await vm.backups.run(folder)).kind == "incremental"
    layers = [point.disks["disk0"] for point in await backups.points(folder)]
    assert [layer.checksum.partition(":")[0] for layer in layers] == ["sha256"] * 2 + ["xxh3_128"]
    for layer, needed in zip(layers, [(1, 2, 3), (2, 3), (3,)], strict=True):
        whole = (folder / layer.file).read_bytes()
        (folder / layer.file).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert [flaw.points for flaw in await backups.verify(folder)] == [needed]
        (folder / layer.file).write_bytes(whole)
    await restored(folder, "disk0", 2, {1: 1, 2: 2, 3: 0})
    assert len(await backups.prune(folder, keep_last=1)) == 2
    assert await backups.verify(folder) == ()
    await restored(folder, "disk0", 3, {1: 1, 2: 2, 3: 3})


@pytest.mark.qemus(*NEWEST)
async def test_an_image_of_the_old_version_is_copied_whole(qemu: str, tmp_path: Path) -> None:
    spec = bare(qemu, tmp_path, "qcow2")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", spec.disks[0].file]
    await trio.run_process([*argv, "16M"])
    async with qmpkit.running(spec, paused=True) as vm:
        for _ in range(2):
            point = await vm.backups.run(tmp_path / "backups")
            assert point.kind == "full" and "compat=1.1" in point.why
        async with vm.backups.pulling(tmp_path / "pull", checkpoint="one"):
            assert await ours(vm) == set()


@pytest.mark.qemus(*NEWEST)
async def test_going_back_to_ram_leaves_no_bitmap_that_lies(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1)
        await vm.snapshots.save("ram")
        await write(vm, "disk0", 0, 2)
        await vm.backups.run(folder)
        await vm.snapshots.load("ram")
        point = await vm.backups.run(folder)
        assert "its dirty bitmap is gone" in point.why
    await restored(folder, "disk0", 1, {0: 2})
    await restored(folder, "disk0", 2, {0: 1})


@pytest.mark.qemus(*NEWEST)
async def test_what_is_written_meanwhile_is_the_next_point_s(qemu: str, tmp_path: Path) -> None:
    folder, blocks = tmp_path / "backups", range(64)
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1, count=len(blocks))
        copied: list[float] = []
        begun = trio.Event()

        async def writes() -> None:
            await begun.wait()
            await write(vm, "disk0", 0, 2, count=len(blocks))
            assert copied[-1] < 1, "the copying goes on"

        def told(progress: JobProgress) -> None:
            copied.append(progress.state.fraction)
            begun.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writes)
            await vm.backups.run(folder, speed=48 << 20, progress=told)
        point = await vm.backups.run(folder, mode="incremental")
        assert not point.why
    await restored(folder, "disk0", 1, dict.fromkeys(blocks, 1))
    await restored(folder, "disk0", 2, dict.fromkeys(blocks, 2))


@pytest.mark.qemus(*NEWEST)
async def test_a_bitmap_of_another_disk_copy_or_size_is_never_believed(
    qemu: str, tmp_path: Path
) -> None:
    folder, copy = tmp_path / "backups", tmp_path / "copy"
    spec = bare(qemu, tmp_path, "qcow2", "qcow2")
    async with qmpkit.running(spec, paused=True) as vm:
        await write(vm, "disk0", 0, 1)
        await write(vm, "disk1", 0, 2)
        await write(vm, "disk1", 200, 2)
        await vm.backups.run(folder)
        shutil.copytree(folder, copy)
        await vm.backups.run(folder)
        await write(vm, "disk0", 0, 3)
        await vm.backups.run(copy)
        point = await vm.backups.run(folder)
        assert "its dirty bitmap is gone" in point.why
        a, b = vm.spec.disks
    await restored(folder, "disk0", None, {0: 3})
    swapped = [Disk(b.file, format="qcow2"), Disk(a.file, format="qcow2")]
    async with qmpkit.running(attrs.evolve(spec, disks=swapped), paused=True) as vm:
        point = await vm.backups.run(folder)
        assert point.kind == "full" and "order of the disks" in point.why
    await restored(folder, "disk0", None, {0: 2, 200: 2})
    await restored(folder, "disk1", None, {0: 3})
    await images.resize(b.file, "8MiB", "qcow2", shrink=True)
    await images.resize(b.file, "16MiB", "qcow2")
    async with qmpkit.running(attrs.evolve(spec, disks=swapped), paused=True) as vm:
        point = await vm.backups.run(folder)
        assert point.disks["disk0"].why and not point.disks["disk1"].why
    await restored(folder, "disk0", None, {0: 2, 200: 0})
