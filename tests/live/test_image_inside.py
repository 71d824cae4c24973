"""Snapshots, bitmaps and secrets in images, and headers that no program should believe."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.images import Limits, Options
from qmpkit.process.spawner import shared_spawner
from tests.hostile import DAMAGED
from tests.live.image_tools import MIB, assert_same, left, said, written, wrote
from tests.sizes import ENCRYPTED, NEWEST, OLDEST

pytestmark = pytest.mark.live

SECRET = "gehéim, with a comma"


def content(image: Path) -> bytes:
    return image.read_bytes()


# --- snapshots and bitmaps


async def test_snapshots(qemu_img: str, tmp_path: Path) -> None:
    async with shared_spawner():
        disk = await images.create(tmp_path / "a,b", "1MiB", "qcow2")
        await wrote(qemu_img, disk, 0, 1)
        first = await images.create_snapshot(disk, "-c first, of all")
        assert (first.id, first.name, first.vm_size) == ("1", "-c first, of all", 0)
        flat = await images.convert(disk, tmp_path / "flat", source_format="qcow2", format="raw")
        await wrote(qemu_img, disk, 0, 2)
        second = await images.create_snapshot(disk, "second")
        assert (first, second) == (await images.info(disk)).snapshots
        await images.apply_snapshot(disk, first.name)
        await assert_same(disk, "qcow2", flat, "raw", qemu_img)
        await images.apply_snapshot(disk, second.id)
        assert not (await images.compare(disk, "qcow2", flat, "raw")).identical
        copy = await images.convert(
            disk,
            tmp_path / "copy",
            source_format="qcow2",
            format="raw",
            snapshot=first.name,
        )
        assert content(copy) == content(flat)
        with pytest.raises(ImageFailed, match="it has no snapshot 'x', but '-c first, of all', 's"):
            await images.convert(
                disk, tmp_path / "x", source_format="qcow2", format="raw", snapshot="x"
            )
        await images.delete_snapshot(disk, "1")
        assert (await images.info(disk)).snapshots == (second,)
        with pytest.raises(ImageFailed, match="it has a snapshot 'second' already"):
            await images.create_snapshot(disk, "second")
        for ask in (images.apply_snapshot, images.delete_snapshot):
            with pytest.raises(ImageFailed, match="it has no snapshot 'first', but 'second'"):
                await ask(disk, "first")
        for name in ("", "7", "two\nlines", "n" * 256):
            with pytest.raises(SpecInvalid, match="name"):
                await images.create_snapshot(disk, name)
        assert (await images.check(disk, "qcow2")).leaks == 0


@pytest.mark.qemus(*NEWEST)
async def test_a_snapshot_keeps_its_base(qemu_img: str, tmp_path: Path) -> None:
    """qemu-img would copy the present content alone, and the snapshot show another base's."""
    async with shared_spawner():
        base = written(tmp_path / "base", MIB)
        top = await images.overlay(tmp_path / "top", base, "raw")
        await images.create_snapshot(top, "one")
        asks: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: images.rebase(top, "qcow2", None),
            lambda: images.commit(top, "qcow2"),
        )
        for ask in asks:
            with pytest.raises(ImageFailed, match=r"it has snapshots \('one'\), which would show"):
                await ask()
        moved = base.rename(tmp_path / "moved")
        await images.rebase(top, "qcow2", moved, "raw", unsafe=True)
        await images.apply_snapshot(top, "one")
        await assert_same(top, "qcow2", moved, "raw", qemu_img)


@pytest.mark.qemus(*NEWEST)
async def test_snapshots_of_one_name_are_told_apart(qemu_img: str, tmp_path: Path) -> None:
    """qemu-img makes them, and deletes the first of them."""
    disk = await images.create(tmp_path / "disk", "1MiB", "qcow2")
    for byte in (1, 2):
        await wrote(qemu_img, disk, 0, byte)
        await said(qemu_img, "snapshot", "-c", "same", str(disk))
    with pytest.raises(ImageFailed, match=r"several snapshots 'same'.*by its id: 1, 2"):
        await images.apply_snapshot(disk, "same")
    await images.apply_snapshot(disk, "1")
    with pytest.raises(ImageFailed, match="several snapshots 'same'"):
        await images.delete_snapshot(disk, "1")
    flat = await images.convert(disk, tmp_path / "flat", source_format="qcow2", format="raw")
    assert content(flat)[:1] == b"\1"


async def test_bitmaps(qemu_img: str, tmp_path: Path) -> None:
    async with shared_spawner():
        disk = await images.create(tmp_path / "disk", "1MiB", "qcow2")
        first = await images.add_bitmap(disk, "first", granularity="4KiB")
        assert (first.granularity, first.recording, first.broken) == (4096, True, False)
        second = await images.add_bitmap(disk, "--add, =second", recording=False)
        assert (second.granularity, second.recording) == (65536, False)
        assert (await images.info(disk)).bitmaps == (first, second)
        await images.merge_bitmap(disk, "first", second.name)
        await images.change_bitmap(disk, second.name, "enable")
        await images.change_bitmap(disk, "first", "disable")
        found = {one.name: one.recording for one in (await images.info(disk)).bitmaps}
        assert found == {"first": False, second.name: True}
        await images.change_bitmap(disk, "first", "clear")
        await images.change_bitmap(disk, "first", "remove")
        assert [one.name for one in (await images.info(disk)).bitmaps] == [second.name]
        with pytest.raises(ImageFailed, match="Dirty bitmap 'first' not found"):
            await images.change_bitmap(disk, "first", "remove")
        with pytest.raises(ImageFailed, match="already"):
            await images.add_bitmap(disk, second.name)
        for wrong in (1000, 256):
            with pytest.raises(SpecInvalid, match="granularity"):
                await images.add_bitmap(disk, "x", granularity=wrong)


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("after", [0.0, 0.005, 0.015])
async def test_a_cancelled_change_ends_in_order(
    qemu_img: str, tmp_path: Path, after: float
) -> None:
    """A bitmap that is cut off in the middle would be broken, and all others with it."""
    async with shared_spawner():
        disk = await images.create(tmp_path / "disk", "1MiB", "qcow2")
        await images.add_bitmap(disk, "old")
        with trio.move_on_after(after) as scope:
            await images.add_bitmap(disk, "new")
            await images.create_snapshot(disk, "one")
            await trio.sleep_forever()
        assert scope.cancelled_caught
        found = await images.info(disk)
        assert not any(bitmap.broken for bitmap in found.bitmaps)
        assert (await images.check(disk, "qcow2")).leaks == 0


# --- secrets


@pytest.mark.bound(120)
@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("format", ENCRYPTED)
async def test_a_life_of_an_encrypted_image(qemu_img: str, tmp_path: Path, format: str) -> None:
    """Making one takes seconds of CPU, so all of it is one test."""
    plain = tmp_path / "plain"
    plain.write_bytes(random.Random(1).randbytes(MIB))
    async with shared_spawner():
        disk = await images.convert(
            plain,
            tmp_path / "disk,1",
            source_format="raw",
            format=format,
            secret=SECRET,
            options=Options(iter_time=10),
        )
        assert (await images.info(disk, format=format)).encrypted
        assert content(plain)[:512] not in content(disk)
        top = await images.overlay(tmp_path / "top", disk, format)
        if format == "qcow2":
            await images.create_snapshot(disk, "one", secret=SECRET)
            await images.apply_snapshot(disk, "one", secret=SECRET)
            await images.add_bitmap(disk, "b", secret=SECRET)
            with pytest.raises(ImageFailed, match=r"Cure: remove its bitmaps first"):
                await images.apply_snapshot(disk, "one", secret=SECRET)
            assert (await images.check(disk, "qcow2", secret=SECRET)).ok
        for image, kind in ((disk, format), (top, "qcow2")):
            same = await images.compare(image, kind, plain, "raw", secret=SECRET.encode())
            assert (same.identical, same.difference) == (True, None)
            assert await images.extents(image, kind, secret=SECRET)
        copy = await images.convert(
            top, tmp_path / "copy", source_format="qcow2", format="raw", source_secret=SECRET
        )
        assert content(copy)[:MIB] == content(plain)
        await images.rebase(top, "qcow2", plain, "raw", secret=SECRET)
        assert (await images.compare(top, "qcow2", plain, "raw")).identical
        with pytest.raises(ImageFailed, match=r"is encrypted, and qemu-img cannot be told"):
            await images.rebase(top, "qcow2", disk, format)
        assert await images.resize(disk, "2MiB", format, secret=SECRET) == 2 * MIB
        await assert_needs_its_secret(disk, format)


async def assert_needs_its_secret(disk: Path, format: str) -> None:
    before, new = content(disk), disk.with_name("new")
    asks: tuple[Callable[[str | None], Awaitable[object]], ...] = (
        lambda secret: images.convert(
            disk, new, source_format=format, format="raw", source_secret=secret
        ),
        lambda secret: images.resize(disk, "+1MiB", format, secret=secret),
        lambda secret: images.extents(disk, format, secret=secret),
        lambda secret: images.compare(disk, format, disk, format, secret=secret),
    )
    for ask in asks:
        with pytest.raises(ImageFailed, match=r"is encrypted\. Cure: say (source_)?secret=…"):
            await ask(None)
        with pytest.raises(ImageFailed, match=r"Invalid password.*Cure: give the secret") as caught:
            await ask("wrong")
        assert "driver=" not in str(caught.value)
    assert content(disk) == before
    assert not new.exists()


def said_to_processes() -> Iterator[str]:
    """The words and the environment of each."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            yield os.fsdecode(words)


@pytest.mark.qemus(*NEWEST)
async def test_a_secret_stands_on_no_command_line(qemu_img: str, tmp_path: Path) -> None:
    """It is made slowly, and every process is looked at meanwhile."""
    seen: list[str] = []

    def is_under_way() -> bool:
        seen.extend(said_to_processes())
        return any("secret,id=key0,file=/proc/self/fd/" in words for words in seen)

    async def look(scope: trio.CancelScope) -> None:
        left = 10  # once it is there, which may be late on a busy host
        while left:
            left -= is_under_way()
            await trio.sleep(0.02)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, nursery.cancel_scope)
        await images.create(tmp_path / "disk", "1MiB", "luks", secret="s3cret-of-mine")
        pytest.fail("it was made before it was seen")
    assert not any("s3cret-of-mine" in words for words in seen)
    assert left(tmp_path) == set()


# --- hostile headers


@pytest.mark.qemus(*OLDEST)
@pytest.mark.parametrize("name", DAMAGED)
async def test_a_header_that_lies(qemu_img: str, tmp_path: Path, name: str) -> None:
    image = DAMAGED[name](tmp_path)
    before, new = content(image), tmp_path / "new"
    tight = Limits(memory=512 * MIB, cpu=5, time=20, file_size=64 * MIB)
    asks: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: images.convert(image, new, source_format="qcow2", format="raw", limits=tight),
        lambda: images.resize(image, "+1MiB", "qcow2", limits=tight),
        lambda: images.check(image, "qcow2", limits=tight),
        lambda: images.machine_for(image, write=True),
    )
    async with shared_spawner():
        for ask in asks:
            with trio.fail_after(20), pytest.raises(ImageFailed) as caught:
                await ask()
            assert caught.value.stderr
    assert content(image) == before
    assert left(tmp_path) == {image.name}
