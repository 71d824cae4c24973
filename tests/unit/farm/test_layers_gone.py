"""Machines whose disks had layers when they were forgotten, and whose files were removed since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.farm import up
from qmpkit.spec.block import Disk
from qmpkit.spec.data import spec_to_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.snapshots import Snapshot
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.farm.farms import did, farm
from tests.unit.supervisor.kept import lab


@pytest.fixture
def folder(state: Path, tmp_path: Path) -> Path:
    """Where the disk was of which a snapshot was taken; its machine was forgotten then."""
    file, layer = str(tmp_path / "a.qcow2"), str(tmp_path / "a.s1.qcow2")
    known = MachineSpec(
        name="a",
        disks=[Disk(layer, format="qcow2", origin=file)],
        snapshots=[Snapshot(name="s1", disks={"disk0": file}, formats={"disk0": "qcow2"})],
        snapshot="s1",
    )
    (state / "layers").mkdir(parents=True)
    (state / "layers" / "a.json").write_text(json.dumps(spec_to_dict(known)))
    return tmp_path


async def test_disks_of_which_nothing_is_left_are_made_anew(folder: Path, state: Path) -> None:
    disk = folder / "a.qcow2"
    wanted = farm(a={"disks": [{"file": str(disk), "format": "qcow2", "make": "1MiB"}]})
    async with fake_ground() as ground, lab(ground) as supervisor:
        assert did(await up(supervisor, wanted)) == {"a": "added"}
        spec = supervisor.kept["a"].spec
        assert [it.file for it in spec.disks] == [str(disk)]
        assert not spec.snapshots and spec.snapshot is None
        assert disk.exists()
        await supervisor.declare("a", "stopped")
    assert not (state / "layers" / "a.json").exists()


async def test_a_layer_that_is_lost_is_told_and_its_base_is_not_written(folder: Path) -> None:
    disk = folder / "a.qcow2"
    disk.write_bytes(b"the base")
    wanted = farm(a={"disks": [{"file": str(disk), "format": "qcow2", "make": "1MiB"}]})
    async with fake_ground() as ground, lab(ground) as supervisor:
        with pytest.raises(SpecInvalid, match=r"a\.s1\.qcow2' does not exist.*put it back"):
            await up(supervisor, wanted)
        assert disk.read_bytes() == b"the base"
