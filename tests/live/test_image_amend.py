"""How an image keeps its books, and which secrets open it, changed in place."""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qmpkit import images
from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.images import Options
from qmpkit.process.spawner import shared_spawner
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.image_tools import MIB, assert_same, said
from tests.live.test_images_killed import killed_program
from tests.sizes import ENCRYPTED, KEY_CANCELS_EVERY, NEWEST, REST_KILLS

pytestmark = pytest.mark.live

OLD, NEW, THIRD = "secret one", "the new, one=1", "a third"

PROGRAM = """
import sys, trio
from qmpkit import images
from qmpkit.process.spawner import shared_spawner
async def main():
    async with shared_spawner():
        print("go", flush=True)
        while True:
            await images.amend(sys.argv[1], compat="1.1", refcount_bits=64)
            await images.amend(sys.argv[1], compat="0.10", refcount_bits=16)
trio.run(main)
"""


def specific(image: images.ImageInfo) -> dict[str, object]:
    found: dict[str, object] = image.raw["format-specific"]["data"]
    return found


async def full(folder: Path, size: int = MIB) -> tuple[Path, Path]:
    """A qcow2 with something everywhere, and the same as raw."""
    flat = folder / "flat"
    flat.write_bytes(random.Random(1).randbytes(size))
    disk = await images.convert(flat, folder / "a,b", source_format="raw", format="qcow2")
    return disk, flat


async def test_books(qemu_img: str, tmp_path: Path) -> None:
    async with shared_spawner():
        disk, flat = await full(tmp_path)
        progress = images.Progress()
        made = await images.amend(disk, lazy_refcounts=True, refcount_bits=64, progress=progress)
        assert (specific(made)["lazy-refcounts"], specific(made)["refcount-bits"]) == (True, 64)
        assert progress.fraction == 1.0
        with pytest.raises(ImageFailed, match=r"Cure: say refcount_bits=16 \(--ref"):
            await images.amend(disk, compat="0.10")
        made = await images.amend(disk, compat="0.10", lazy_refcounts=False, refcount_bits=16)
        assert specific(made)["compat"] == "0.10"
        made = await images.amend(disk, refcount_bits=1, compat="1.1", lazy_refcounts=True)
        assert (specific(made)["compat"], specific(made)["refcount-bits"]) == ("1.1", 1)
        await assert_same(disk, "qcow2", flat, "raw", qemu_img)
        assert (await images.check(disk, "qcow2")).leaks == 0


@pytest.mark.qemus(*NEWEST)
async def test_what_an_old_image_cannot_have(qemu_img: str, tmp_path: Path) -> None:
    """qemu-img would leave the bitmap broken, and say that all is well."""
    async with shared_spawner():
        disk = await images.create(tmp_path / "disk", "1MiB", "qcow2")
        bitmap = await images.add_bitmap(disk, "b")
        before = disk.read_bytes()
        with pytest.raises(ImageFailed, match=r"0.10 has none\. Cure: remove its bitmaps first"):
            await images.amend(disk, compat="0.10", refcount_bits=16)
        assert disk.read_bytes() == before
        await images.amend(disk, refcount_bits=32)
        assert (await images.info(disk)).bitmaps == (bitmap,)
        zeros = tmp_path / "zeros"
        zeros.write_bytes(b"0" * MIB)
        for options in (Options(compression="zstd"), Options(extended_l2=True)):
            other = await images.convert(
                zeros,
                tmp_path / "other",
                source_format="raw",
                format="qcow2",
                compress=True,
                options=options,
                replace=True,
            )
            before = other.read_bytes()
            with pytest.raises(ImageFailed, match="Cannot downgrade an image with"):
                await images.amend(other, compat="0.10")
            assert other.read_bytes() == before


@pytest.mark.bound(300)
@pytest.mark.qemus(*NEWEST)
async def test_python_is_killed(qemu_img: str, tmp_path: Path) -> None:
    async with shared_spawner():
        disk, flat = await full(tmp_path, 4 * MIB)
        kept = Path(shutil.copy(disk, tmp_path / "kept"))
        for number in range(REST_KILLS):
            await killed_program(PROGRAM, disk, after=0.03 + 0.3 * number / REST_KILLS)
            found = await images.check(disk, "qcow2")
            assert found.ok, found
            await assert_same(disk, "qcow2", flat, "raw", qemu_img)
            shutil.copyfile(kept, disk)


# --- secrets


async def one(folder: Path, format: str, encrypted: Path) -> Path:
    disk = folder / "a,b"
    if format == "qcow2":
        return Path(shutil.copy(encrypted, disk))
    options = Options(iter_time=10)
    return await images.create(disk, "1MiB", format, secret=OLD, options=options)


@pytest.mark.bound(120)
@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("format", ENCRYPTED)
async def test_keys(qemu_img: str, tmp_path: Path, format: str, encrypted: Path) -> None:
    async with shared_spawner():
        disk = await one(tmp_path, format, encrypted)
        made = await images.add_key(
            disk, format, secret=OLD, new_secret=NEW.encode(), slot=5, iter_time=10
        )
        assert made.key_slots == (0, 5)
        for secret in (OLD, NEW):
            assert await images.extents(disk, format, secret=secret)
        for ask, why in refused(disk, format):
            before = disk.read_bytes()
            with pytest.raises(ImageFailed, match=why) as caught:
                await ask()
            assert "driver=" not in str(caught.value)
            assert disk.read_bytes() == before
        made = await images.remove_key(disk, format, secret=NEW, old_secret=OLD)
        assert made.key_slots == (5,)
        last: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: images.remove_key(disk, format, secret=NEW, old_secret=NEW),
            lambda: images.remove_key(disk, format, secret=NEW, slot=5),
        )
        for ask in last:
            with pytest.raises(ImageFailed, match=r"refusing.*Cure: add another secret first"):
                await ask()
        with pytest.raises(ImageFailed, match="Invalid password"):
            await images.extents(disk, format, secret=OLD)
        assert await images.extents(disk, format, secret=NEW)


def refused(disk: Path, format: str) -> list[tuple[Callable[[], Awaitable[object]], str]]:
    return [
        (
            lambda: images.add_key(disk, format, secret="wrong", new_secret=THIRD),
            r"Invalid password.*Cure: give the secret",
        ),
        (
            lambda: images.add_key(disk, format, secret=OLD, new_secret=THIRD, slot=5),
            r"Cure: remove it first, or leave the slot out",
        ),
        (
            lambda: images.remove_key(disk, format, secret=OLD, old_secret=THIRD),
            r"No keyslots match.*Cure: `qmpkit image key list` shows",
        ),
        (
            lambda: images.remove_key(disk, format, secret=OLD, slot=3),
            r"keyslot 3 is already erased",
        ),
    ]


@pytest.mark.bound(900)
@pytest.mark.qemus(*NEWEST)
async def test_a_change_of_keys_that_is_cancelled(
    qemu_img: str, tmp_path: Path, encrypted: Path
) -> None:
    """Whenever that is, one of the two opens it."""
    async with shared_spawner():
        disk = await one(tmp_path, "qcow2", encrypted)
        slots: tuple[int, ...] = ()

        async def change() -> None:
            shutil.copyfile(encrypted, disk)
            await images.change_key(disk, "qcow2", secret=OLD, new_secret=NEW, iter_time=10)

        async def well() -> None:
            nonlocal slots
            slots = (await images.info(disk)).key_slots
            for secret in {(0,): (OLD,), (0, 1): (OLD, NEW), (1,): (NEW,)}[slots]:
                assert (await images.check(disk, "qcow2", secret=secret)).ok

        async with leaks():
            assert await cancel_at_every_checkpoint(change, after=well, every=KEY_CANCELS_EVERY)
        assert slots == (1,)


@pytest.mark.qemus(*NEWEST)
async def test_one_that_is_not_encrypted(qemu_img: str, tmp_path: Path) -> None:
    disk = await images.create(tmp_path / "disk", "1MiB", "qcow2")
    with pytest.raises(ImageFailed, match=r"it is not encrypted\. Cure: convert\(secret=…\)"):
        await images.add_key(disk, "qcow2", secret=OLD, new_secret=NEW)
    with pytest.raises(SpecInvalid, match="new_secret: is the old one"):
        await images.change_key(disk, "qcow2", secret=OLD, new_secret=OLD.encode())
    await said(qemu_img, "check", str(disk))
