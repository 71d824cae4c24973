"""The directory of what one run throws away."""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path

import pytest

from qmpkit.cli.scratch import scratch
from qmpkit.testing.cancel import cancel_at_every_checkpoint


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def assert_empty(place: Path) -> None:
    assert left(place) == []


def left(place: Path) -> list[Path]:
    return list(place.iterdir())


async def test_made_when_asked_for_and_gone_after(place: Path) -> None:
    async with scratch() as folder:
        assert left(place) == []
        path = await folder.path("disk.qcow2")
        (parent,) = left(place)
        assert path == parent / "disk.qcow2"
        assert stat.S_IMODE(parent.stat().st_mode) == 0o700
        assert (await folder.path("seed.iso")).parent == parent
        path.write_bytes(b"x")
    assert left(place) == []


async def test_gone_early(place: Path) -> None:
    async with scratch() as folder:
        path = await folder.path("disk.qcow2")
        path.write_bytes(b"x")
        await folder.remove()
        assert left(place) == []
        await folder.remove()


async def test_cancelled_at_every_checkpoint(place: Path) -> None:
    async def use() -> None:
        async with scratch() as folder:
            path = await folder.path("disk.qcow2")
            path.write_bytes(b"x")
            await folder.remove()

    assert await cancel_at_every_checkpoint(use, after=partial(assert_empty, place)) > 1
