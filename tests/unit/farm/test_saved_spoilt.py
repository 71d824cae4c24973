"""Saved machines whose disks somebody has written to: each is told, and keeps up nobody else."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

from qmpkit.errors import SpecInvalid
from qmpkit.farm import up
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.farm.farms import did, farm
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


def _table(disk: Path) -> dict[str, object]:
    return {"disks": [{"file": str(disk), "format": "qcow2", "make": "1MiB"}]}


async def _saved_and_spoilt(supervisor: Supervisor, name: str, disk: Path) -> None:
    """With the RAM of a moment after which its disk was written to."""
    await supervisor.declare(name, "stopped")
    memory = disk.with_suffix(".ram")
    memory.touch()
    kept = supervisor.kept[name]
    kept.note(spec=attrs.evolve(kept.spec, resume_from=str(memory)))
    await trio.run_process(
        ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", str(disk)], capture_stdout=True
    )


async def test_the_others_start_and_it_is_told_by_name(tmp_path: Path) -> None:
    disk = tmp_path / "a.qcow2"
    wanted = farm(a=_table(disk), b={}, c={"requires": ["a"]})
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, wanted)
        for name in "bc":
            await supervisor.declare(name, "stopped")
        await _saved_and_spoilt(supervisor, "a", disk)
        outcome = await up(supervisor, wanted)
        assert did(outcome) == {"a": "failed", "b": "started", "c": "blocked"}
        assert not outcome.went_well
        why = outcome.machines["a"].why
        assert "machine 'a'" in why and f"'{disk}' was written to since the snapshot" in why
        assert "go back to the snapshot once more" in why
        a = supervisor.kept["a"]
        assert a.declared == "stopped" and a.spec.resume_from is not None, "it is as it was"
        kept = attrs.evolve(a.spec, resume_from=None)
        a.note(spec=kept)  # as when that RAM is discarded
        assert did(await up(supervisor, wanted))["a"] == "started"


async def test_what_else_it_lacks_is_the_farms(tmp_path: Path) -> None:
    disk = tmp_path / "a.qcow2"
    wanted = farm(a=_table(disk), b={})
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, wanted)
        await supervisor.declare("b", "stopped")
        await _saved_and_spoilt(supervisor, "a", disk)
        disk.write_bytes(b"no image")
        with pytest.raises(SpecInvalid, match=r"a\.qcow2"):
            await up(supervisor, wanted)
        assert supervisor.kept["b"].declared == "stopped"
