"""A kept machine that goes back to a snapshot of its disks, and on from there."""

from __future__ import annotations

from pathlib import Path

import pytest

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
