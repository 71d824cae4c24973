"""What is remembered of machines that are forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import attrs

from qmpkit.spec.data import spec_to_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.snapshots import Snapshot
from qmpkit.supervisor.layers import Forgotten

SNAPPED = MachineSpec(name="m", snapshots=[Snapshot(name="one", memory="/one.ram")])


async def test_what_it_was_saved_with_is_not_remembered(tmp_path: Path) -> None:
    forgotten = Forgotten(tmp_path)
    await forgotten.put(attrs.evolve(SNAPPED, resume_from="/saved/m/memory"))
    assert forgotten.get("m") == SNAPPED


async def test_the_ram_of_a_snapshot_that_it_is_to_go_on_with_is(tmp_path: Path) -> None:
    back = attrs.evolve(SNAPPED, resume_from="/one.ram")
    await Forgotten(tmp_path).put(back)
    forgotten = Forgotten(tmp_path)
    await forgotten.load()
    assert forgotten.get("m") == back


async def test_what_an_earlier_version_has_remembered_is_left_out(tmp_path: Path) -> None:
    stale = attrs.evolve(SNAPPED, resume_from="/saved/m/memory")
    (tmp_path / "m.json").write_text(json.dumps(spec_to_dict(stale)))
    forgotten = Forgotten(tmp_path)
    await forgotten.load()
    assert forgotten.get("m") == SNAPPED
