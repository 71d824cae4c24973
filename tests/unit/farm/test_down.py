"""Taking a farm down with its disks: what somebody else has open stays, and all is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpkit.farm import down, up
from qmpkit.host.holders import deny_writing
from qmpkit.spec.farm import Farm
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.farm.farms import did, farm
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


def _with_disk(disk: Path) -> Farm:
    made = {"file": str(disk), "format": "raw", "make": "1MiB"}
    return farm(a={"disks": [made]}, b={})


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    """A disk as the QEMU of another farm has it open."""
    fd = os.open(tmp_path / "a.raw", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


async def test_a_disk_that_another_farms_machine_has_open_stays(
    tmp_path: Path, opened: int
) -> None:
    disk = tmp_path / "a.raw"
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, _with_disk(disk))
        deny_writing(opened)
        outcome = await down(supervisor, delete_disks=True)
        assert did(outcome) == {"a": "failed", "b": "removed"}
        why = outcome.machines["a"].why
        assert f"not forgotten: cannot delete '{disk}'" in why
        assert f"pid {os.getpid()}" in why
        assert (disk.exists(), list(supervisor.kept)) == (True, ["a"])
        assert (await down(supervisor)).went_well  # which leaves it there


async def test_a_disk_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "a.raw"
    async with fake_ground() as ground, lab(ground) as supervisor:
        await up(supervisor, _with_disk(disk))
        disk.unlink()
        disk.mkdir()
        outcome = await down(supervisor, names=["a"], delete_disks=True)
        assert outcome.machines["a"].why == (
            f"it is forgotten, and these stay: {disk} (Is a directory)"
        )
        assert list(supervisor.kept) == ["b"]
