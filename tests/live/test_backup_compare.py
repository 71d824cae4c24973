"""Backups that are compared with the disks of their own moment, while the guest writes on."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

import qmpkit
from qmpkit import BackupDiffers, JobFailed, SpecInvalid, backups
from qmpkit.backups.repository import MOMENT
from qmpkit.operations.jobs import JobProgress
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.backup_folders import files_needed, files_there, restored
from tests.live.blocks import BLOCK, bare, nothing_left, qemu_io, write
from tests.live.small_disk import small_disk
from tests.sizes import BACKUP_CANCELS, NEWEST

pytestmark = pytest.mark.live


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a short path, for the socket in it."""
    with tempfile.TemporaryDirectory(prefix="qk-") as short:
        yield Path(short, "backups")


async def test_what_the_guest_writes_meanwhile_is_no_difference(
    qemu: str, tmp_path: Path, folder: Path
) -> None:
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2", "raw"), paused=True) as vm:
        phases: set[str] = set()
        for number in (1, 2):
            await write(vm, "disk0", number, number, count=64)
            await write(vm, "disk1", number, number, count=64)
            wrote = trio.Event()

            async def overwrite() -> None:
                for disk in ("disk0", "disk1"):
                    await write(vm, disk, 0, 9, count=200)
                wrote.set()  # noqa: B023

            async with trio.open_nursery() as nursery:
                started = False

                def told(progress: JobProgress) -> None:
                    nonlocal started
                    phases.add(progress.state.type)
                    if not started:
                        started = True
                        nursery.start_soon(overwrite)

                point = await vm.backups.run(folder, speed=64 << 20, compare=True, progress=told)
            assert wrote.is_set() and phases == {"backup", "compare", "checksum"}
            assert point.disks["disk0"].parent if number == 2 else point.kind == "full"
            await nothing_left(vm)
            assert files_there(folder) == files_needed(await backups.points(folder))
        for disk in ("disk0", "disk1"):
            await restored(folder, disk, 1, {0: 0, 1: 1, 64: 1, 65: 0})
            await restored(folder, disk, 2, {0: 9, 1: 9, 2: 2, 65: 2, 66: 9})


@pytest.mark.qemus(*NEWEST)
async def test_a_difference_keeps_nothing_of_the_point(
    qemu: str, tmp_path: Path, folder: Path
) -> None:
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1, count=8)
        first = await vm.backups.run(folder, compare=True)
        await write(vm, "disk0", 4, 2)
        before = files_there(folder)

        def damage(progress: JobProgress) -> None:
            if progress.state.type == "compare":
                (layer,) = (folder / name for name in files_there(folder) - before - {MOMENT})
                content = layer.read_bytes()
                layer.write_bytes(content.replace(bytes([2]) * 512, bytes([3]) * 512))

        with pytest.raises(BackupDiffers, match=r"disk0.*mismatch at offset 262144") as caught:
            await vm.backups.run(folder, compare=True, progress=damage)
        assert caught.value.disk == "disk0"
        await nothing_left(vm)
        assert files_there(folder) == before and await backups.points(folder) == (first,)

        # An older layer that is not what it was: only what a restore would show tells.
        layer = folder / first.disks["disk0"].file
        whole = layer.read_bytes()
        await qemu_io(str(layer), "qcow2", f"write -P 7 0 {BLOCK}", readonly=False)
        assert await backups.verify(folder)
        with pytest.raises(BackupDiffers, match="mismatch at offset 0"):
            await vm.backups.run(folder, compare=True)
        layer.write_bytes(whole)
        point = await vm.backups.run(folder, compare=True)
        assert point.kind == "incremental", "it goes on from the point before"
    await restored(folder, "disk0", None, {0: 1, 4: 2, 5: 1})


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_anywhere_nothing_is_left(qemu: str, tmp_path: Path, folder: Path) -> None:
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await vm.backups.run(folder)
        numbers = itertools.count(1)

        async def run() -> None:
            await write(vm, "disk0", next(numbers), 7)
            await vm.backups.run(folder, compare=True)

        async def as_before() -> None:
            await nothing_left(vm)
            assert files_there(folder) == files_needed(await backups.points(folder))

        await cancel_at_every_checkpoint(run, every=2 * BACKUP_CANCELS, after=as_before)
        await restored(folder, "disk0", None, {1: 7})


@pytest.mark.qemus(*NEWEST)
async def test_a_moment_that_finds_no_room_is_lost_and_not_the_guest(
    qemu: str, tmp_path: Path, folder: Path
) -> None:
    with small_disk(folder) as small:
        async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2")) as vm:
            await write(vm, "disk0", 100, 4, count=40)
            async with trio.open_nursery() as nursery:
                told: list[JobProgress] = []

                def overwrite(progress: JobProgress) -> None:
                    if not told:  # compressed they take no room, held they do
                        nursery.start_soon(partial(write, vm, "disk0", 100, 3, count=40))
                    told.append(progress)

                with pytest.raises(JobFailed, match="No space left"):
                    await vm.backups.run(
                        small.path / "b",
                        compress=True,
                        compare=True,
                        speed=1 << 20,
                        progress=overwrite,
                    )
            await nothing_left(vm)
            assert not (small.path / "b").exists()
            assert (await vm.execute("query-status"))["status"] == "running"


@pytest.mark.qemus(*NEWEST)
async def test_what_a_program_that_died_has_left_goes_and_what_cannot_be_is_refused(
    qemu: str, tmp_path: Path, folder: Path
) -> None:
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await vm.backups.run(folder)
        (folder / MOMENT).mkdir(mode=0o700)
        (folder / MOMENT / "disk0.fleece.qcow2").touch()
        await vm.backups.run(folder)
        assert not (folder / MOMENT).exists()
        long = folder / ("x" * 100)
        with pytest.raises(SpecInvalid, match="bytes of a socket's path"):
            await vm.backups.run(long, compare=True)
        assert not long.exists()
