"""A kept machine that goes back to a snapshot of its disks, and on from there."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import JournalFailed, SpecInvalid
from qmpkit.testing.leaks import leaks
from tests.live.blocks import bare, holds, nothing_left, write
from tests.live.kept import Places, end_all, lab
from tests.live.small_disk import small_disk
from tests.sizes import NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.usefixtures("places"),
]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.qcow2"))


async def test_back_to_a_snapshot_and_on(qemu: str, tmp_path: Path) -> None:
    spec = bare(qemu, tmp_path, "qcow2", "raw")
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            for number, name in enumerate(["one", "two"], 1):
                for disk in ("disk0", "disk1"):
                    await write(kept.vm, disk, 0, number)
                await kept.vm.snapshots.take(name)
            await write(kept.vm, "disk0", 0, 9)
            with pytest.raises(SpecInvalid, match="it is up"):
                await supervisor.revert("bare", "one")
            await supervisor.declare("bare", "stopped")
            with pytest.raises(SpecInvalid, match="no snapshot 'nix'"):
                await supervisor.revert("bare", "nix")
            left = await supervisor.revert("bare", "one")
            assert [Path(file).name for file in left] == ["0.two.qcow2", "1.raw.two.qcow2"]
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            assert kept.spec.snapshot == "one"
            await write(kept.vm, "disk0", 1, 5)
            with pytest.raises(SpecInvalid, match="delete two first"):
                await kept.vm.snapshots.delete("one")
            await kept.vm.snapshots.take("three")
            assert kept.vm.snapshots.list()[-1].parent == "one"
            await kept.vm.snapshots.delete("two")
            await kept.vm.snapshots.delete("one")
            await nothing_left(kept.vm)
            await supervisor.declare("bare", "stopped")
            first, second = kept.spec.disks
            (three,) = kept.spec.snapshots
        await end_all()
    await holds(first.file, first.format, {0: 1, 1: 5})
    await holds(second.file, second.format, {0: 1})
    await holds(three.disks["disk0"], three.formats["disk0"], {0: 1, 1: 5})


async def test_it_is_undone_when_it_cannot_be_written(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    spec = bare(qemu, tmp_path, "qcow2")
    with small_disk(places.state) as small:
        async with leaks():
            async with lab() as supervisor:
                kept = await supervisor.ensure(spec, paused=True)
                assert kept.vm is not None
                await kept.vm.snapshots.take("one")
                small.fill()
                with pytest.raises(JournalFailed):
                    await kept.vm.snapshots.take("two")
                with pytest.raises(JournalFailed):
                    await kept.vm.snapshots.delete("one")
                await nothing_left(kept.vm)
                await supervisor.declare("bare", "stopped")
                with pytest.raises(JournalFailed):
                    await supervisor.revert("bare", "one")
                small.free()
                assert [it.name for it in kept.spec.snapshots] == ["one"]
            await end_all()
    assert names_in(tmp_path) == ["0.one.qcow2", "0.qcow2"]


async def test_forgotten_and_made_again_it_goes_on(qemu: str, tmp_path: Path) -> None:
    spec = bare(qemu, tmp_path, "qcow2")
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            await write(kept.vm, "disk0", 0, 1)
            await kept.vm.snapshots.take("one")
            await write(kept.vm, "disk0", 1, 2)
            await supervisor.declare("bare", "stopped")
            await supervisor.forget("bare")
        async with lab() as supervisor:
            extra = qmpkit.Disk(str(tmp_path / "new.raw"), format="raw", make="1MiB")
            kept = await supervisor.ensure(
                attrs.evolve(spec, disks=[extra, *_unnamed(spec)]), paused=True
            )
            assert kept.vm is not None
            assert [point.disks for point in kept.vm.snapshots.list()] == [
                {"disk1": str(tmp_path / "0.qcow2")}
            ]
            await write(kept.vm, "disk1", 2, 3)
            await kept.vm.snapshots.delete("one")
            await supervisor.declare("bare", "stopped")
            disk = kept.spec.disks[1]
        await end_all()
    await holds(disk.file, "qcow2", {0: 1, 1: 2, 2: 3})


def _unnamed(spec: qmpkit.MachineSpec) -> list[qmpkit.Disk]:
    return [attrs.evolve(disk, id="") for disk in spec.disks]


async def test_what_another_machine_needs_is_not_merged(qemu: str, tmp_path: Path) -> None:
    spec = bare(qemu, tmp_path, "qcow2")
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            await kept.vm.snapshots.take("one")
            base = kept.vm.snapshots.list()[0].disks["disk0"]
            over = qmpkit.Disk(
                str(tmp_path / "clone.qcow2"),
                format="qcow2",
                make=qmpkit.Overlay(base, format="qcow2"),
            )
            clone = attrs.evolve(spec, name="clone", disks=[over])
            await supervisor.ensure(clone, paused=True)
            await supervisor.declare("clone", "stopped")
            with pytest.raises(SpecInvalid, match="below the disks of clone"):
                await kept.vm.snapshots.delete("one")
            assert kept.vm.snapshots.list()[0].whole
            await supervisor.forget("clone")
            await kept.vm.snapshots.delete("one")
        await end_all()
