"""Deleting checkpoints of machines that are down: their images are real, their QEMUs are not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import Disk, Kept, MachineSpec, Snapshot, SpecInvalid, Supervisor, images
from qmpkit.process.durable import write_durably
from qmpkit.spec.checkpoints import Checkpoint, checkpoint_to_json
from qmpkit.testing.fake_kept import fake_ground
from tests.live.kept import Places
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


@asynccontextmanager
async def faked() -> AsyncIterator[Supervisor]:
    async with fake_ground() as ground, Supervisor("lab", keep=True, ground=ground) as lab:
        yield lab


async def stopped(lab: Supervisor, spec: MachineSpec) -> Kept:
    kept = await lab.ensure(spec, restart="never")
    await lab.declare(spec.name, "stopped", powerdown_grace=0)
    return kept


async def with_disks(name: str, *files: Path) -> MachineSpec:
    for file in files:
        await images.create(file, "1MiB", "qcow2")
    disks = [Disk(file, format="qcow2") for file in files]
    return MachineSpec(name=name, accel="tcg", memory="16MiB", disks=disks)


def remember(places: Places, name: str, *machines: str) -> Path:
    """Have a checkpoint on record; its folder."""
    folder = places.state / "lab/checkpoints"
    folder.mkdir(exist_ok=True)
    text = checkpoint_to_json(Checkpoint(name=name, machines=machines))
    write_durably(folder / f"{name}.json", text)
    return folder


def without_disks(name: str, memory: Path) -> MachineSpec:
    """With the RAM of a snapshot "one"."""
    memory.write_bytes(b"RAM")
    point = Snapshot(name="one", memory=str(memory))
    return MachineSpec(name=name, accel="tcg", memory="16MiB", snapshots=[point], snapshot="one")


async def test_one_that_another_branch_needs_stays_whole(places: Places, tmp_path: Path) -> None:
    async with faked() as lab:
        a, b = [
            await stopped(lab, await with_disks(name, tmp_path / f"{name}.qcow2")) for name in "ab"
        ]
        for name, taken in (("a", ["one"]), ("b", ["one", "two"])):
            async with lab.at_rest(name) as machine:
                for it in taken:
                    await machine.snapshots.take(it)
        await lab.revert("b", "one")
        remember(places, "one", "a", "b")
        before = a.spec, b.spec
        with pytest.raises(SpecInvalid, match=r"below that of two .*delete two first"):
            await lab.delete_checkpoint("one")
        assert (a.spec, b.spec) == before
        (point,) = await lab.checkpoints()
        assert point.whole
        async with lab.at_rest("b") as machine:
            await machine.snapshots.delete("two")
        await lab.delete_checkpoint("one")
        assert a.spec.snapshots == b.spec.snapshots == () and await lab.checkpoints() == ()


async def test_one_disk_that_refuses_leaves_the_others(tmp_path: Path) -> None:
    spec = await with_disks("a", tmp_path / "0.qcow2", tmp_path / "1.qcow2")
    async with qmpkit.at_rest(spec) as machine:
        await machine.snapshots.take("one")
        await machine.snapshots.take("two", disks=["disk1"])
        spec = machine.spec
    spec = await qmpkit.reverted(spec, "one")
    async with qmpkit.at_rest(spec) as machine:
        with pytest.raises(SpecInvalid, match="below that of two"):
            await machine.snapshots.delete("one")
        assert machine.spec.snapshots == spec.snapshots
        assert machine.spec.disks == spec.disks


async def test_one_of_machines_without_disks(places: Places) -> None:
    async with faked() as lab:
        folder = remember(places, "one", "a", "b")
        machines = [
            await stopped(lab, without_disks(name, folder / f"{name}.one.ram")) for name in "ab"
        ]
        await lab.delete_checkpoint("one")
        assert all(kept.spec.snapshots == () for kept in machines)
        assert await lab.checkpoints() == () and [*folder.iterdir()] == []


@pytest.mark.parametrize("again", [False, True])
async def test_one_of_machines_that_were_forgotten(places: Places, again: bool) -> None:
    async with faked() as lab:
        folder = remember(places, "one", "a")
        spec = without_disks("a", folder / "a.one.ram")
        await stopped(lab, spec)
        await lab.forget("a")
        if again:  # without a snapshot: it is another machine, for all that is known
            await stopped(lab, attrs.evolve(spec, snapshots=[], snapshot=None))
        await lab.delete_checkpoint("one")
        assert [*folder.iterdir()] == [*(places.state / "lab/layers").iterdir()] == []


async def test_the_ram_of_a_snapshot_that_was_renamed_stays(places: Places) -> None:
    async with faked() as lab:
        folder = remember(places, "one", "a")
        kept = await stopped(lab, without_disks("a", folder / "a.one.ram"))
        async with lab.at_rest("a") as machine:
            await machine.snapshots.rename("one", "kept")
        await lab.delete_checkpoint("one")
        assert [it.name for it in kept.spec.snapshots] == ["kept"]
        assert [path.name for path in folder.iterdir()] == ["a.one.ram"]


async def test_one_of_a_machine_that_is_saved_is_refused(tmp_path: Path) -> None:
    spec = await with_disks("a", tmp_path / "a.qcow2")
    async with qmpkit.at_rest(spec) as machine:
        await machine.snapshots.take("one")
        spec = attrs.evolve(machine.spec, resume_from=str(tmp_path / "saved/memory"))
    async with qmpkit.at_rest(spec) as machine:
        with pytest.raises(SpecInvalid, match="is saved, and its RAM fits its disks"):
            await machine.snapshots.delete("one")
        assert machine.spec.snapshots == spec.snapshots
