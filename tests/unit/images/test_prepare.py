"""`make=`: made for a start, taken away when the start fails, never a file of somebody else."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qmpkit.errors import ImageFailed
from qmpkit.host.headers import read_header
from qmpkit.images import create
from qmpkit.images.prepare import prepared_disks
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.machine import MachineSpec


class LaunchBroke(Exception):
    pass


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.fixture
async def spec(tmp_path: Path) -> MachineSpec:
    base = await create(tmp_path / "base", "1MiB", "qcow2")
    return MachineSpec(
        disks=(
            Disk(tmp_path / "data", format="raw", make="1MiB"),
            Disk(tmp_path / "top", format="qcow2", make=Overlay(base, format="qcow2")),
            Disk(base, format="qcow2", readonly=True),
        )
    )


async def test_made_and_kept(tmp_path: Path, spec: MachineSpec) -> None:
    async with prepared_disks(spec) as made:
        assert made.paths == (tmp_path / "data", tmp_path / "top")
        assert left(tmp_path) == {"base", "data", "top"}
    assert left(tmp_path) == {"base", "data", "top"}
    assert (tmp_path / "data").stat().st_size == 1 << 20
    assert read_header(tmp_path / "top").backing == "./base"


async def test_taken_away_when_the_start_fails(tmp_path: Path, spec: MachineSpec) -> None:
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec):
            raise LaunchBroke
    assert left(tmp_path) == {"base"}


async def test_taken_away_when_cancelled(tmp_path: Path, spec: MachineSpec) -> None:
    with trio.CancelScope() as scope:
        async with prepared_disks(spec):
            scope.cancel()
            await trio.sleep_forever()
    assert left(tmp_path) == {"base"}


async def test_kept_after_the_start(tmp_path: Path, spec: MachineSpec) -> None:
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec) as made:
            made.keep()
            raise LaunchBroke
    assert left(tmp_path) == {"base", "data", "top"}


async def test_what_exists_is_used_as_it_is(tmp_path: Path, spec: MachineSpec) -> None:
    (tmp_path / "data").write_text("precious")
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec) as made:
            assert made.paths == (tmp_path / "top",)
            raise LaunchBroke
    assert left(tmp_path) == {"base", "data"}
    assert (tmp_path / "data").read_text() == "precious"


async def test_what_was_written_since_stays(tmp_path: Path, spec: MachineSpec) -> None:
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec):
            (tmp_path / "data").write_text("the guest ran")
            raise LaunchBroke
    assert left(tmp_path) == {"base", "data"}


async def test_what_was_replaced_or_removed_since_is_left_alone(
    tmp_path: Path, spec: MachineSpec
) -> None:
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec):
            (tmp_path / "top").unlink()
            (tmp_path / "other").write_bytes(b"")
            (tmp_path / "other").rename(tmp_path / "data")
            raise LaunchBroke
    assert left(tmp_path) == {"base", "data"}


async def test_the_second_image_fails(tmp_path: Path, spec: MachineSpec) -> None:
    (tmp_path / "base").write_bytes(b"no image any more")
    with pytest.raises(ImageFailed):
        async with prepared_disks(spec):
            raise AssertionError("the block must not begin")
    assert left(tmp_path) == {"base"}


async def test_nothing_to_make_costs_no_checkpoint(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with prepared_disks(MachineSpec()) as made:
            assert made.paths == ()


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08])
async def test_cancelled_at_any_time(tmp_path: Path, spec: MachineSpec, delay: float) -> None:
    with trio.move_on_after(delay):
        async with prepared_disks(spec):
            await trio.sleep_forever()
    assert left(tmp_path) == {"base"}
