"""Rebase, commit, compare and maps by the real qemu-img of each version."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.errors import ImageFailed, ImageInUse, SpecInvalid
from qmpkit.host.headers import read_header
from qmpkit.images import Comparison, Limits, Options, Progress
from qmpkit.process.spawner import shared_spawner
from tests.live.image_tools import MIB, left, said, written, wrote
from tests.sizes import NEWEST

pytestmark = pytest.mark.live

SAME = Comparison(identical=True, difference=None, same_size=True)


async def stack(folder: Path, qemu_img: str) -> tuple[Path, Path, Path]:
    """A raw base, an overlay with some content, and what that shows."""
    base = written(folder / "base", 4 * MIB, seed=1)
    top = await images.overlay(folder / "top", base, "raw")
    await wrote(qemu_img, top, MIB, 5)
    flat = await images.convert(top, folder / "flat", source_format="qcow2", format="raw")
    return base, top, flat


async def shows(top: Path, flat: Path) -> None:
    assert await images.compare(top, "qcow2", flat, "raw") == SAME
    assert (await images.check(top, "qcow2")).ok


async def test_rebase(qemu_img: str, tmp_path: Path) -> None:
    async with shared_spawner():
        base, top, flat = await stack(tmp_path, qemu_img)
        other = written(tmp_path / "other", 2 * MIB, seed=2)  # and shorter
        progress = Progress()
        await images.rebase(top, "qcow2", other, "raw", progress=progress)
        found = await images.info(top)
        assert (found.backing, found.backing_format, progress.fraction) == ("./other", "raw", 1.0)
        await shows(top, flat)
        (tmp_path / "sub").mkdir()
        moved = other.rename(tmp_path / "sub" / "other")
        await images.rebase(top, "qcow2", moved, "raw", unsafe=True)
        found = await images.info(top)
        assert (found.backing, found.backing_path) == (str(moved), moved)
        await shows(top, flat)
        await images.rebase(top, "qcow2", None)
        assert (await images.info(top)).backing is None
        await shows(top, flat)
        await images.rebase(top, "qcow2", base, "raw", unsafe=True)
        assert read_header(top).backing == "./base"


async def test_rebase_within_a_chain_of_an_overlay_that_is_longer(
    qemu_img: str, tmp_path: Path
) -> None:
    """Some versions of qemu-img went round and round there for ever."""
    async with shared_spawner():
        base = await images.create(tmp_path / "base", "1MiB", "qcow2")
        middle = await images.overlay(tmp_path / "middle", base, "qcow2")
        await wrote(qemu_img, middle, 4096, 6)
        top = await images.overlay(tmp_path / "top", middle, "qcow2")
        await images.resize(top, "8MiB", "qcow2")
        flat = await images.convert(top, tmp_path / "flat", source_format="qcow2", format="raw")
        with trio.fail_after(20):
            await images.rebase(top, "qcow2", base, "qcow2")
        middle.unlink()
        await shows(top, flat)


@pytest.mark.qemus(*NEWEST)
async def test_what_cannot_be_rebased(qemu_img: str, tmp_path: Path) -> None:
    async with shared_spawner():
        base, top, _ = await stack(tmp_path, qemu_img)
        above = await images.overlay(tmp_path / "above", top, "qcow2")
        before = top.read_bytes()
        for to, format, words in (
            (above, "qcow2", "it is itself below"),
            (tmp_path / "none", "raw", "no such file"),
            (base, "qcow2", "is raw, not qcow2"),
            (base, None, "format of the new base is not stated"),
        ):
            for unsafe in (False, True):
                with pytest.raises(ImageFailed, match=words):
                    await images.rebase(top, "qcow2", to, format, unsafe=unsafe)
        with pytest.raises(ImageFailed, match="raw images have no base"):
            await images.rebase(base, "raw", top, "qcow2")
        little = Limits(memory=4 * MIB)
        with pytest.raises(ImageFailed, match=r"raise limits\.memory"):
            await images.rebase(top, "qcow2", None, limits=little)
        assert top.read_bytes() == before


async def test_commit(qemu_img: str, tmp_path: Path) -> None:
    async with shared_spawner():
        base, top, flat = await stack(tmp_path, qemu_img)
        progress = Progress()
        assert await images.commit(top, "qcow2", keep=True, progress=progress) == base
        assert progress.fraction == 1.0
        assert base.read_bytes() == flat.read_bytes()
        assert any(
            extent.depth == 0 and extent.data for extent in await images.extents(top, "qcow2")
        )
        other = await images.overlay(tmp_path / "other", base, "raw")
        with pytest.raises(ImageFailed, match=f"has other overlays, .*: {str(other)!r}"):
            await images.commit(top, "qcow2")
        await wrote(qemu_img, top, 2 * MIB, 9)
        await images.commit(top, "qcow2", shared=True)
        assert base.read_bytes()[2 * MIB : 2 * MIB + 4096] == bytes([9]) * 4096
        assert all(extent.depth == 1 for extent in await images.extents(top, "qcow2"))
        await images.check(top, "qcow2")


@pytest.mark.qemus(*NEWEST)
async def test_what_cannot_be_committed(qemu_img: str, tmp_path: Path) -> None:
    async with shared_spawner():
        _, top, _ = await stack(tmp_path, qemu_img)
        alone = await images.create(tmp_path / "alone", "1MiB", "qcow2")
        with pytest.raises(ImageFailed, match="it has no base"):
            await images.commit(alone, "qcow2")
        with pytest.raises(ImageFailed, match="outside the allowed folders"):
            await images.commit(top, "qcow2", allowed=["/nowhere"])
        content = bytearray(top.read_bytes())
        at = content.index(bytes.fromhex("e2792aca"))
        content[at : at + 4] = b"\1\1\1\1"  # as old versions of qemu-img made them
        top.write_bytes(content)
        with pytest.raises(ImageFailed, match=r"is not recorded\. Cure: record it"):
            await images.commit(top, "qcow2")


@pytest.mark.qemus(*NEWEST)
async def test_a_running_machine_keeps_its_images(qemu: str, qemu_img: str, tmp_path: Path) -> None:
    from tests.live.test_images_in_use import stranger

    async with shared_spawner():
        base = await images.create(tmp_path / "base", "1MiB", "qcow2")
        top = await images.overlay(tmp_path / "top", base, "qcow2")
        other = await images.overlay(tmp_path / "other", base, "qcow2")
        async with stranger(qemu, other) as pid:
            for ask in (
                lambda: images.commit(top, "qcow2", shared=True),
                lambda: images.create_snapshot(base, "one"),
                lambda: images.add_bitmap(other, "b"),
                lambda: images.rebase(other, "qcow2", None),
                lambda: images.compare(other, "qcow2", top, "qcow2"),
                lambda: images.extents(other, "qcow2"),
                lambda: images.bench(other, "qcow2", requests=1, overwrite=True),
            ):
                with pytest.raises(ImageInUse, match=f"pid {pid}"):
                    await ask()


async def test_compare_map_measure_bench(qemu_img: str, tmp_path: Path) -> None:
    one, other = written(tmp_path / "one", 2 * MIB), tmp_path / "other"
    other.write_bytes(one.read_bytes() + bytes(MIB))
    async with shared_spawner():
        assert await images.compare(one, "raw", one, "raw") == SAME
        assert await images.compare(one, "raw", other, "raw") == Comparison(True, None, False)
        content = bytearray(one.read_bytes())
        content[1_000_000] ^= 1
        for length, same in ((MIB, False), (2 * MIB, True)):
            other.write_bytes(content[:length])
            found = await images.compare(one, "raw", other, "raw")
            assert found == Comparison(False, 999_936, same)
        vdi = await images.convert(other, tmp_path / "vdi", source_format="raw", format="vdi")
        found = await images.compare(one, "raw", vdi, "vdi")
        assert found == Comparison(False, 999_936, True)
        disk = await images.create(tmp_path / "disk", "2MiB", "qcow2")
        await wrote(qemu_img, disk, MIB, 7)
        parts = await images.extents(disk, "qcow2")
        assert [(part.start, part.length, part.data) for part in parts] == [
            (0, MIB, False),
            (MIB, 65536, True),
            (MIB + 65536, MIB - 65536, False),
        ]
        assert parts[1].offset is not None
        (part,) = await images.extents(disk, "qcow2", start=MIB, length="4KiB")
        assert (part.start, part.length) == (MIB, 4096)
        measured = await images.measure(disk, "qcow2", "raw")
        assert measured.required == measured.full == 2 * MIB
        small = Options(cluster_size="4KiB")
        finer = await images.measure(disk, "qcow2", "qcow2", options=small)
        assert 0 < finer.required < finer.full
        timed = await images.bench(one, "raw", requests=100, size="4KiB", depth=4)
        assert (timed.requests, timed.size) == (100, 4096)
        await images.bench(one, "raw", requests=32, size="64KiB", overwrite=True)
        assert not any(one.read_bytes())
        for requests, size, depth in ((0, 4096, 1), (1, "1GiB", 2), (1, 512, 1 << 31)):
            with pytest.raises(SpecInvalid):
                await images.bench(one, "raw", requests=requests, size=size, depth=depth)


@pytest.mark.qemus(*NEWEST)
async def test_sparse_and_parallel(qemu_img: str, tmp_path: Path) -> None:
    source = written(tmp_path / "source", 4 * MIB)
    async with shared_spawner():
        asked: tuple[tuple[int | str, bool], ...] = (("64KiB", False), (0, True))
        for number, (sparse, full) in enumerate(asked):
            made = await images.convert(
                source,
                tmp_path / str(number),
                source_format="raw",
                format="raw",
                sparse=sparse,
                parallel=16,
            )
            assert made.read_bytes() == source.read_bytes()
            assert ((await images.info(made)).disk_size >= 4 * MIB) is full
        for holes, parallel in ((513, 1), ("4MiB", 1), (512, 0), (512, 17)):
            with pytest.raises(SpecInvalid, match=r"sparse|parallel"):
                await images.convert(
                    source,
                    tmp_path / "x",
                    source_format="raw",
                    format="raw",
                    sparse=holes,
                    parallel=parallel,
                )
    assert left(tmp_path) == {"source", "0", "1"}


@pytest.mark.qemus(*NEWEST)
async def test_options(qemu_img: str, tmp_path: Path) -> None:
    options = Options(cluster_size="128KiB", extended_l2=True, lazy_refcounts=True)
    async with shared_spawner():
        base = await images.create(tmp_path / "base", "1MiB", "qcow2", options=options)
        top = await images.overlay(tmp_path / "top", base, "qcow2", options=options)
        for image in (base, top):
            found = await images.info(image)
            said_of_it = found.raw["format-specific"]["data"]
            assert found.cluster_size == 128 << 10
            assert said_of_it["extended-l2"] is said_of_it["lazy-refcounts"] is True
        await said(qemu_img, "check", "-q", "-f", "qcow2", str(top))
