"""Backups that fail, are refused or cancelled: what was there before stays, and goes on."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

import qmpkit
from qmpkit import ImageFailed, JobFailed, SpecInvalid, backups
from qmpkit.backups.repository import MANIFEST
from qmpkit.operations.jobs import JobProgress
from qmpkit.spec.backups import bitmaps_of
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.backup_folders import (
    files_needed,
    files_there,
    io,
    make_first_older,
    ours,
    restored,
    trust,
)
from tests.live.blocks import BLOCK, bare, holds, nothing_left, write
from tests.live.small_disk import small_disk
from tests.sizes import BACKUP_CANCELS, NEWEST

pytestmark = pytest.mark.live

BLOCKS = 16 * 16  # of a disk of 16 MiB


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_anywhere_the_folder_and_the_machine_are_as_they_were(
    qemu: str, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2", "qcow2"), paused=True) as vm:
        await vm.backups.run(folder)
        numbers = itertools.count(1)
        known: list[int] = [1]

        async def run() -> None:
            await write(vm, "disk0", next(numbers), 7)
            await vm.backups.run(folder)

        async def as_before() -> None:
            await nothing_left(vm)
            points = await backups.points(folder)
            assert files_there(folder) == files_needed(points)
            if len(points) == len(known):  # undone: it goes on from the last point
                assert await ours(vm) == bitmaps_of(points[-1])
            known[:] = [point.number for point in points]

        await cancel_at_every_checkpoint(run, every=BACKUP_CANCELS, after=as_before)
        done = next(numbers)
        point = await vm.backups.run(folder)
        assert not point.why
    await restored(folder, "disk0", None, dict.fromkeys(range(1, done), 7))
    assert await backups.verify(folder) == ()


@pytest.mark.qemus(*NEWEST)
async def test_a_full_disk_fails_the_backup_and_not_the_machine(qemu: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as small:
        folder = small.path / "backups"
        async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
            await write(vm, "disk0", 0, 7, count=4)
            await vm.backups.run(folder)
            before = files_there(folder)
            await write(vm, "disk0", 4, 8, count=32)
            with pytest.raises(ImageFailed, match=r"No space left.*needed"):
                await vm.backups.run(folder)
            # Nobody knows beforehand what compression leaves of it.
            for block in range(4, 36):
                await io(vm, "disk0", f"write -s /dev/urandom {block * BLOCK} {BLOCK}")
            with pytest.raises((JobFailed, ImageFailed), match="No space left"):
                await vm.backups.run(folder, compress=True)
            small.fill()
            with pytest.raises(ImageFailed, match="No space left"):
                await vm.backups.run(folder, compress=True)
            small.free()
            assert files_there(folder) == before
            await nothing_left(vm)
            for block in range(4, 36):
                await write(vm, "disk0", block, 9, count=1)
            point = await vm.backups.run(folder, compress=True)
            assert not point.why
            small.fill()
            with pytest.raises(ImageFailed, match="No space left"):
                await backups.prune(folder, keep_last=1)
            small.free()
            await vm.quit()
        await backups.restore(folder, "disk0", tmp_path / "back.raw", format="raw")
        await holds(str(tmp_path / "back.raw"), "raw", {0: 7, 3: 7, 4: 9, 35: 9, 36: 0})
        assert await backups.verify(folder) == ()


@pytest.mark.qemus(*NEWEST)
async def test_a_disk_that_fails_under_the_copy_fails_the_backup(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = tmp_path / "backups"
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 7)
        await vm.backups.run(folder)
        before = files_there(folder)
        with monkeypatch.context() as broken:
            broken.setattr("os.fdatasync", fail)
            with pytest.raises(ImageFailed, match="Input/output error"):
                await vm.backups.run(folder, mode="full", speed=1 << 20)
        assert files_there(folder) == before
        await nothing_left(vm)
        assert not (await vm.backups.run(folder)).why


@pytest.mark.qemus(*NEWEST)
async def test_a_qemu_without_the_tuning_copies_all_the_same(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def with_more(action: dict[str, Any]) -> dict[str, Any]:
        tried.append(action)
        return {**action, "data": {**action["data"], "x-unknown": 1}}

    monkeypatch.setattr("qmpkit.operations.block.backup._tuned", with_more)
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 7)
        await vm.backups.run(tmp_path / "backups")
        assert len(tried) == 2, "the bitmap, and the copy"
        await nothing_left(vm)
    await restored(tmp_path / "backups", "disk0", 1, {0: 7, 1: 0})


@pytest.mark.qemus(*NEWEST)
async def test_a_bad_layer_is_found_and_never_merged_or_restored(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        for number in (1, 2, 3):
            await write(vm, "disk0", number, number)
            await vm.backups.run(folder, mode="full" if number == 1 else "incremental")
    second = folder / (await backups.points(folder))[1].disks["disk0"].file
    whole = second.read_bytes()
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (flaw,) = await backups.verify(folder)
    assert flaw.points == (2, 3) and "checksum" in flaw.what
    assert await backups.verify(folder, point=1) == ()
    with pytest.raises(ImageFailed, match=r"checksum.*or take point 1"):
        await backups.restore(folder, "disk0", tmp_path / "x.qcow2")
    with pytest.raises(ImageFailed, match="checksum"):
        await backups.prune(folder, keep_last=1)
    assert not (tmp_path / "x.qcow2").exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    manifest, base = (folder / MANIFEST).read_text(), (await backups.points(folder))[0]
    first = shutil.copy(folder / base.disks["disk0"].file, elsewhere)
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(first)]
    second.write_bytes(whole)
    await trio.run_process([*rebase, str(second)])
    trust(folder, second)
    assert f"it stands on {first}" in str((await backups.verify(folder))[0])
    with pytest.raises(ImageFailed, match="elsewhere"):
        await backups.restore(folder, "disk0", tmp_path / "x.qcow2", verified=False)
    (folder / MANIFEST).write_text(manifest)
    second.unlink()
    assert "missing" in str((await backups.verify(folder))[0])
    second.write_bytes(whole)
    make_first_older(folder)
    assert [point.number for point in await backups.prune(folder, daily=2)] == [2]
    await restored(folder, "disk0", 1, {1: 1, 2: 0, 3: 0})
    await restored(folder, "disk0", 3, {1: 1, 2: 2, 3: 3})


@pytest.mark.qemus(*NEWEST)
async def test_what_cannot_be_is_refused(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        with pytest.raises(SpecInvalid, match="there is no point of it before"):
            await vm.backups.run(folder, mode="incremental")
        assert not folder.exists(), "what was made for nothing is gone"
        seen: list[JobProgress] = []
        await vm.backups.run(folder, progress=seen.append)
        assert {it.state.type for it in seen} == {"backup", "checksum"}
        assert seen[-1].state.fraction == 1.0
        with pytest.raises(SpecInvalid, match="not UTF-8"):
            await vm.backups.run(tmp_path / os.fsdecode(b"\xff"))
        with pytest.raises(SpecInvalid, match="counts from 0"):
            await vm.backups.run(folder, speed=-1)
        with pytest.raises(SpecInvalid, match="mode"):
            await vm.backups.run(folder, mode="other")  # type: ignore[arg-type]
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text.replace('"bare"', '"other"'))
        with pytest.raises(SpecInvalid, match="backups of 'other', not of 'bare'"):
            await vm.backups.run(folder)
        (folder / MANIFEST).unlink()
        with pytest.raises(
            SpecInvalid, match=r"there is no manifest.json, and 1 layers of backups"
        ):
            await vm.backups.run(folder)
        (folder / MANIFEST).write_text(text)
        with pytest.raises(ImageFailed, match="No such file"):
            await vm.backups.run(tmp_path / "no" / "folder")
        gone = lambda _: folder.exists() and folder.rename(tmp_path / "gone")  # noqa: E731
        with pytest.raises(ImageFailed, match="No such file"):
            await vm.backups.run(folder, mode="full", progress=gone)
        (tmp_path / "gone").rename(folder)
        await nothing_left(vm)
    with pytest.raises(SpecInvalid, match="there is no manifest"):
        await backups.points(tmp_path)
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(SpecInvalid, match="not JSON"):
        await backups.points(tmp_path)
    with pytest.raises(SpecInvalid, match=r"there is no point 7 \(there are 1"):
        await backups.restore(folder, "disk0", tmp_path / "x.qcow2", point=7)
    with pytest.raises(SpecInvalid, match="did you mean 'disk0'"):
        await backups.restore(folder, "disc0", tmp_path / "x.qcow2")
    with pytest.raises(ImageFailed, match="exists already"):
        await backups.restore(folder, "disk0", tmp_path / "0.qcow2")


@pytest.mark.qemus(*NEWEST)
async def test_two_at_once_in_a_folder_and_a_slow_one_cancelled(qemu: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    spec = bare(qemu, tmp_path, "qcow2")
    async with qmpkit.running(spec, paused=True) as vm:
        await write(vm, "disk0", 0, 1, count=BLOCKS)
        seen: list[JobProgress] = []
        with trio.CancelScope() as scope:

            async def second() -> None:
                with pytest.raises(qmpkit.ImageInUse, match="is at work there"):
                    await backups.prune(folder, keep_last=1)
                assert await backups.points(folder) == ()
                scope.cancel()

            async with trio.open_nursery() as nursery:

                def told(progress: JobProgress) -> None:
                    if not seen:
                        nursery.start_soon(second)
                    seen.append(progress)

                await vm.backups.run(folder, speed=1 << 20, progress=told)
        assert scope.cancelled_caught
        assert seen[-1].state.fraction < 1
        assert not folder.exists()
        await nothing_left(vm)
        async with trio.open_nursery() as nursery:

            def ends(progress: JobProgress) -> None:
                nursery.start_soon(vm.kill)

            with pytest.raises(qmpkit.MachineGone):
                await vm.backups.run(folder, speed=1 << 20, progress=ends)
    assert not folder.exists()
