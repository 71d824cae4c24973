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
from qmpkit.testing.cancel import cancel_at_every_checkpoint


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


async def test_what_another_qemu_runs_on_stays(
    tmp_path: Path, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    monkeypatch.setattr(
        "qmpkit.images.prepare.image_locked", lambda path, for_writing: path == data
    )
    with pytest.raises(LaunchBroke):
        async with prepared_disks(spec):
            raise LaunchBroke
    assert left(tmp_path) == {"base", "data"}


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


async def test_cancelled_at_every_checkpoint(tmp_path: Path, spec: MachineSpec) -> None:
    """Nothing is left of a cancelled start, and a finished one is taken away for the next."""
    made = {"data", "top"}

    async def prepare() -> None:
        async with prepared_disks(spec):
            await trio.lowlevel.checkpoint()

    def only_the_base_is_left() -> None:
        found = left(tmp_path) - {"base"}
        assert found in (set(), made)  # all or nothing
        for name in found:
            (tmp_path / name).unlink()

    assert await cancel_at_every_checkpoint(prepare, after=only_the_base_is_left) > 10


async def test_creation_cancelled_at_every_checkpoint(tmp_path: Path) -> None:
    def whole_or_not_at_all() -> None:
        assert left(tmp_path) <= {"disk"}
        (tmp_path / "disk").unlink(missing_ok=True)

    async def make() -> None:
        await create(tmp_path / "disk", "1MiB", "qcow2")

    assert await cancel_at_every_checkpoint(make, after=whole_or_not_at_all) > 10
