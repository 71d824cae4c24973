"""A guest writes without pause while its disks are snapped, merged, moved, grown, backed up …"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, backups, images
from qmpkit.operations.block.backup_plan import dirty_bitmaps
from qmpkit.testing import guests
from tests.live.blocks import nothing_left
from tests.sizes import DISK_STEPS, QEMU_VERSIONS

pytestmark = [pytest.mark.live, pytest.mark.qemus(*QEMU_VERSIONS)]

# A record is a sector: its number and a checksum; acknowledged when both disks have it for good.
WRITER = """
cd /tmp
n=0
while [ ! -e stop ]; do
  n=$((n+1))
  echo "$n $(echo $n | md5sum | cut -c1-32)" > record
  for disk in vda vdb; do
    dd if=record of=/dev/$disk bs=512 seek=$n count=1 conv=notrunc,sync,fsync 2>/dev/null || exit
  done
  echo $n > acked
done
touch done
"""


class Torture:
    """The steps, chosen by dice; every file that may still be needed is in *folder*."""

    def __init__(self, vm: qmpkit.VM, folder: Path, dice: random.Random) -> None:
        self.vm = vm
        self.folder = folder
        self.dice = dice
        self.numbers = itertools.count(1)
        self.size = {"disk0": 64, "disk1": 64}
        self.backups = folder / "backups"
        self.had: list[int] = []  # by point: how many records were acknowledged before it

    def steps(self) -> list[Callable[[], Awaitable[object]]]:
        points = self.vm.snapshots.list()
        found: list[Callable[[], Awaitable[object]]] = [self.move, self.flatten, self.grow]
        found += [self.back_up] * 2 + [self.restore] * bool(self.had)
        found += [self.snap] * 3
        return found + [self.merge] * min(len(points), 4)

    async def snap(self) -> None:
        await self.vm.snapshots.take(f"s{next(self.numbers)}")

    async def merge(self) -> None:
        below = {
            layer.file
            for disk in ("disk0", "disk1")
            for layer in (await self.vm.disks.chain(disk))[1:]
        }
        for point in self.dice.sample(self.vm.snapshots.list(), len(self.vm.snapshots.list())):
            if set(point.disks.values()) <= below:  # not one that was moved or flattened away
                return await self.vm.snapshots.delete(point.name)
        return None

    async def move(self) -> None:
        target = self.folder / f"m{next(self.numbers)}.qcow2"
        await self.vm.disks.move(self._any(), target, format="qcow2")

    async def flatten(self) -> None:
        await self.vm.disks.flatten(self._any())

    async def grow(self) -> None:
        disk = self._any()
        self.size[disk] += 1
        await self.vm.disks.resize(disk, f"{self.size[disk]}MiB")

    async def back_up(self) -> None:
        had = int(
            (await self.vm.agent.run(["sh", "-c", "cat /tmp/acked || echo 0"], check=True)).text
        )
        point = await self.vm.backups.run(self.backups, compress=self.dice.random() < 0.5)
        self.had.append(had)
        assert point.number == len(self.had)

    async def restore(self) -> None:
        """Any point has all that was acknowledged before it, and is of one moment."""
        assert await backups.verify(self.backups) == ()
        number = self.dice.randint(1, len(self.had))
        first, second = [await self._restored(disk, number) for disk in ("disk0", "disk1")]
        assert second >= self.had[number - 1]
        assert first - second in (0, 1), f"point {number} is not of one moment"

    async def _restored(self, disk: str, number: int) -> int:
        target = self.folder / "restored.raw"
        await backups.restore(self.backups, disk, target, point=number, format="raw")
        try:
            return await trio.to_thread.run_sync(_count, target)
        finally:
            target.unlink()

    def _any(self) -> str:
        return self.dice.choice(["disk0", "disk1"])


@pytest.mark.bound(120 + 5 * DISK_STEPS)
async def test_no_record_is_lost(qemu: str, tmp_path: Path) -> None:
    guests.build_tiny()
    disks = [
        Disk(str(tmp_path / "a.qcow2"), format="qcow2", make="64MiB"),
        Disk(str(tmp_path / "b.raw"), format="raw", make="64MiB"),
    ]
    spec = attrs.evolve(
        qmpkit.load_profile("tiny"), qemu=qemu, accel="tcg", disks=disks, memory="262400KiB"
    )
    dice = random.Random(5)
    async with qmpkit.running(spec) as vm:
        await vm.agent.wait_ready()
        await vm.agent.write_file("/tmp/writer", WRITER)
        await vm.console.send_line("sh /tmp/writer &")
        torture = Torture(vm, tmp_path, dice)
        for _ in range(DISK_STEPS):
            await dice.choice(torture.steps())()
        await torture.back_up()
        await torture.restore()
        await nothing_left(vm)
        await _one_bitmap(vm)
        await vm.agent.write_file("/tmp/stop", "")
        wait = "while [ ! -e /tmp/done ]; do sleep 0.1; done; cat /tmp/acked"
        acked = int((await vm.agent.run(["sh", "-c", wait], check=True)).text)
        spec = vm.spec
    assert acked > DISK_STEPS / 4
    for disk in spec.disks:
        assert await _records(disk.file, disk.format, tmp_path) == acked
    for point in spec.snapshots:
        first, second = [
            await _records(file, "raw" if file.endswith(".raw") else "qcow2", tmp_path)
            for _, file in sorted(point.disks.items())
        ]
        assert first - second in (0, 1), f"{point.name} is not of one moment"


async def _one_bitmap(vm: qmpkit.VM) -> None:
    """No image that is written to has more than that of the last backup."""
    for disk in vm.spec.disks:
        written = (await vm.disks.chain(disk.id))[0].node
        assert [node for node, _ in await dirty_bitmaps(vm.machine)].count(written) <= 1


async def _records(file: str, format: str, folder: Path) -> int:
    """How many records an image holds, without a gap; the image is sound."""
    if format == "qcow2":
        report = await images.check(file, format=format)
        assert report.ok and not report.leaks, report
    plain = folder / "plain.img"
    await images.convert(file, plain, source_format=format, format="raw", replace=plain.exists())
    return await trio.to_thread.run_sync(_count, plain)


def _count(plain: Path) -> int:
    with plain.open("rb") as file:
        for number in itertools.count(1):
            file.seek(number * 512)
            digest = hashlib.md5(f"{number}\n".encode()).hexdigest()
            if file.read(512).rstrip(b"\0") != f"{number} {digest}\n".encode():
                assert not file.read(512 * 64).strip(b"\0"), f"a gap at {number}"
                return number - 1
    raise AssertionError
