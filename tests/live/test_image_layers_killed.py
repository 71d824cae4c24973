"""Killed, cancelled or out of space in a rebase or a commit, an overlay shows what it did."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from qmpkit import images
from qmpkit.errors import ImageFailed
from qmpkit.process.spawner import shared_spawner
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.image_tools import MIB
from tests.live.test_images_killed import killed_program
from tests.sizes import NEWEST, REST_CANCELS, REST_KILLED, REST_KILLS

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST), pytest.mark.usefixtures("qemu_img")]

PROGRAM = """
import sys, trio
from qmpkit import images
from qmpkit.process.spawner import shared_spawner
top, base = sys.argv[1:]
async def main():
    async with shared_spawner():
        print("go", flush=True)
        {}
        print("done", flush=True)
trio.run(main)
"""
DEEDS = {
    "rebase": 'await images.rebase(top, "qcow2", base, "raw")',
    "commit": 'await images.commit(top, "qcow2")',
    "snapshots": """while True:
            await images.create_snapshot(top, "one")
            await images.apply_snapshot(top, "one")
            await images.delete_snapshot(top, "one")""",
}


async def stack(folder: Path, size: int = 8 * MIB) -> tuple[Path, Path]:
    """Two bases that differ everywhere, and an overlay of the first that holds half of itself."""
    for number in (1, 2):
        (folder / f"base{number}").write_bytes(random.Random(number).randbytes(size))
    half = folder / "half"
    half.write_bytes(random.Random(3).randbytes(size // 2) + bytes(size // 2))
    top = await images.convert(half, folder / "top", source_format="raw", format="qcow2")
    await images.resize(top, size, "qcow2")
    half.unlink()
    await images.rebase(top, "qcow2", folder / "base1", "raw", unsafe=True)
    flat = await images.convert(top, folder / "flat", source_format="qcow2", format="raw")
    return top, flat


async def shows(top: Path, flat: Path) -> None:
    await images.check(top, "qcow2", repair="all")
    assert await images.compare(top, "qcow2", flat, "raw") == images.Comparison(True, None, True)


@pytest.mark.bound(300)
@pytest.mark.parametrize("doing", REST_KILLED)
async def test_python_is_killed(tmp_path: Path, doing: str) -> None:
    async with shared_spawner():
        top, flat = await stack(tmp_path)
        program = PROGRAM.format(DEEDS[doing])
        first = tmp_path / "base1"
        kept = {path: path.with_suffix(".kept") for path in (top, first)}
        for path, copy in kept.items():
            shutil.copyfile(path, copy)
        kills = midway = 0
        # A kill that comes when all is done tells nothing: it goes on until one came before.
        while kills < REST_KILLS or not midway:
            after = 0.2 * (kills % REST_KILLS) / REST_KILLS
            printed = await killed_program(program, top, tmp_path / "base2", after=after)
            await shows(top, flat)
            kills += 1
            midway += b"done" not in printed
            for path, copy in kept.items():
                shutil.copyfile(copy, path)


async def test_cancelled_at_every_checkpoint(tmp_path: Path) -> None:
    async with shared_spawner():
        top, flat = await stack(tmp_path, MIB)
        asks: dict[str, Callable[[], Awaitable[object]]] = {
            "rebase": lambda: images.rebase(top, "qcow2", tmp_path / "base2", "raw"),
            "commit": lambda: images.commit(top, "qcow2"),
        }

        async def well() -> None:
            same = await images.compare(top, "qcow2", flat, "raw")
            assert same.identical, same

        async with leaks():
            for name in REST_CANCELS:
                ask = asks[name]
                assert await cancel_at_every_checkpoint(ask, after=well) > 5
        await shows(top, flat)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs CAP_SYS_ADMIN to mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    with pytest.raises(OSError, match="No space"), (folder / "more").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


async def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    full = r"No space left on device"
    async with shared_spawner():
        # The overlay and its base together fill the disk: neither can grow.
        top, flat = await stack(tmp_path, 8 * MIB)
        base = small_disk / "base1"
        with base.open("wb") as file:
            file.truncate(8 * MIB)
        fresh = await images.create(small_disk / "fresh", "1GiB", "qcow2")
        place = Path(shutil.copy(top, small_disk / "top"))
        await images.rebase(place, "qcow2", tmp_path / "base1", "raw", unsafe=True)
        (small_disk / "filler").write_bytes(bytes(6 * MIB))
        with pytest.raises(ImageFailed, match=full):
            await images.rebase(place, "qcow2", None)
        await shows(place, flat)
        await images.rebase(place, "qcow2", base, "raw", unsafe=True)
        before = await images.convert(
            place, tmp_path / "before", source_format="qcow2", format="raw"
        )
        with pytest.raises(ImageFailed, match=rf"{full}.*Cure: "):
            await images.commit(place, "qcow2")
        await shows(place, before)
        fill(small_disk)
        for ask in (
            lambda: images.create_snapshot(fresh, "one"),
            lambda: images.add_bitmap(fresh, "one"),
        ):
            with pytest.raises(ImageFailed, match=full):
                await ask()
        found = await images.info(fresh)
        assert (found.snapshots, found.bitmaps) == ((), ())
        assert (await images.check(fresh, "qcow2")).ok
