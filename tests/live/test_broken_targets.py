"""Targets that cannot be written: the job fails, the machine and its guest go on as they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, JobFailed, backups
from qmpkit.operations.jobs import JobProgress
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks
from tests.live.backup_folders import files_needed, files_there, restored
from tests.live.blocks import bare, holds, nothing_left, write
from tests.live.broken_target import broken_targets
from tests.sizes import LONG

pytestmark = pytest.mark.live

EIO = r"Input/output error.*Cure: look at the host's disk"


async def test_a_move(qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1)
        spec, target = vm.spec, tmp_path / "moved.qcow2"
        with broken_targets(vm, monkeypatch), pytest.raises(JobFailed, match=EIO):
            await vm.disks.move("disk0", target)
        assert vm.spec == spec and not target.exists()
        await nothing_left(vm)
        await write(vm, "disk0", 1, 2)
        await vm.disks.move("disk0", target)
    await holds(str(target), "qcow2", {0: 1, 1: 2})


@pytest.mark.parametrize("between", [False, True])
async def test_a_merge(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: bool
) -> None:
    """Into a layer that cannot be written any more; of the top, and of one between two."""
    async with leaks():
        async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
            await write(vm, "disk0", 0, 1)
            with broken_targets(vm, monkeypatch, lambda node: node == "qk-disk0-1-file"):
                await vm.snapshots.take("one")
                await vm.snapshots.take("two")
                await write(vm, "disk0", 1, 2)
                if between:
                    await vm.snapshots.take("three")
                    await write(vm, "disk0", 2, 3)
                chain = [layer.file for layer in await vm.disks.chain("disk0")]
                with pytest.raises(JobFailed, match=EIO):
                    await vm.snapshots.delete("two")
                assert [layer.file for layer in await vm.disks.chain("disk0")] == chain
                assert await vm.execute("query-jobs") == []
                (point,) = [it for it in vm.snapshots.list() if it.name == "two"]
                assert not point.whole, "perhaps some of it is there, and it says so"
                await write(vm, "disk0", 3, 4)
            spec = vm.spec
        # On a disk that is well again, it can be deleted.
        async with qmpkit.running(spec, paused=True) as vm:
            await vm.snapshots.delete("two")
            await nothing_left(vm)
            (disk,) = vm.spec.disks
    await holds(disk.file, "qcow2", {0: 1, 1: 2, 3: 4} | ({2: 3} if between else {}))


async def test_a_backup(qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "backups"
    async with leaks(), qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        await write(vm, "disk0", 0, 1)
        await vm.backups.run(folder)
        await write(vm, "disk0", 1, 2)
        before = files_there(folder)
        with broken_targets(vm, monkeypatch), pytest.raises(JobFailed, match=EIO):
            await vm.backups.run(folder)
        await nothing_left(vm)
        assert files_there(folder) == before == files_needed(await backups.points(folder))
        point = await vm.backups.run(folder)
        assert point.kind == "incremental", "it goes on from the point before"
    await restored(folder, "disk0", None, {0: 1, 1: 2})


# Says how far it is, and of what it was told.
WRITER = """
n=0
until [ -e /tmp/stop ]; do
  dd if=/dev/zero of=/dev/vda bs=4096 seek=$((n * 16 % 1024)) count=1 conv=notrunc,fsync \
    2>/tmp/said || cat /tmp/said >> /tmp/failed
  n=$((n+1))
  echo $n >> /tmp/steps
done
touch /tmp/over
"""
END = """
touch /tmp/steps
before=$(wc -l < /tmp/steps)
while [ $(wc -l < /tmp/steps) -lt $((before + 3)) ]; do sleep 0.1; done
touch /tmp/stop
while [ ! -e /tmp/over ]; do sleep 0.1; done
cat /tmp/failed
dmesg | grep "I/O error"
"""


@pytest.mark.skipif(not LONG, reason="boots a guest: scripts/test --long")
@pytest.mark.parametrize("compare", [False, True])
@pytest.mark.bound(120)
async def test_the_guest_never_hears_of_the_backup_s_disk(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: bool
) -> None:
    guests.build_tiny()
    disk = Disk(tmp_path / "a.qcow2", format="qcow2", make="64MiB")
    spec = attrs.evolve(qmpkit.load_profile("tiny"), qemu=qemu, accel="tcg", disks=[disk])
    short = tempfile.TemporaryDirectory(prefix="qk-")  # as its socket's path is to be
    async with qmpkit.running(spec) as vm:
        await vm.agent.wait_ready()
        await write(vm, "disk0", 0, 1, count=128)
        await vm.agent.write_file("/tmp/writer", WRITER)
        seen: list[JobProgress] = []
        async with trio.open_nursery() as nursery:

            def begin(progress: JobProgress) -> None:
                if not seen:  # the copy waits by its speed, and the guest's writes do not
                    nursery.start_soon(vm.console.send_line, "sh /tmp/writer &")
                seen.append(progress)

            broken = "-held-file" if compare else "-file"
            with (
                broken_targets(vm, monkeypatch, lambda node: node.endswith(broken)),
                pytest.raises(JobFailed, match="a write of the guest failed by that"),
            ):
                folder = Path(short.name, "b")
                await vm.backups.run(folder, speed=1, compare=compare, progress=begin)
        await nothing_left(vm)
        assert (await vm.execute("query-status"))["status"] == "running"
        # It goes on, and the write that failed was tried again.
        assert (await vm.agent.run(["sh", "-c", END])).text == ""
    short.cleanup()
