"""The directory of what one run throws away."""

from __future__ import annotations

import stat
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from qmpkit.cli.scratch import scratch
from qmpkit.errors import HostLacks
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


LEFT = """
import os, signal, trio
from qmpkit.errors import HostLacks
from qmpkit.cli.scratch import scratch

async def main():
    async with scratch() as folder:
        (await folder.path("disk.qcow2")).write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


async def test_what_a_killed_run_left_is_swept_by_the_next(place: Path) -> None:
    await trio.run_process([sys.executable, "-c", LEFT], check=False)
    assert len(left(place)) == 1
    for name in ("qmpkit-1000", "qmpkit-abcdefgh", "other"):  # not a run's
        (place / name).mkdir()
    async with scratch() as folder, scratch() as another:
        own = await folder.path("disk.qcow2")
        other = await another.path("disk.qcow2")
        names = {entry.name for entry in left(place)}
        kept = {"qmpkit-1000", "qmpkit-abcdefgh", "other"}
        assert names == {own.parent.name, other.parent.name} | kept


async def test_where_nothing_can_be_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(place / "absent"))
    async with scratch() as folder:
        with pytest.raises(HostLacks) as caught:
            await folder.path("x")
    assert str(caught.value) == (
        f"no directory can be made in {str(place / 'absent')!r}: No such file or directory. "
        "Cure: name another place: TMPDIR=…"
    )
