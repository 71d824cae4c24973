"""Check, resize and convert by the real qemu-img of each version, within limits."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from qmpkit import images
from qmpkit.errors import ImageFailed
from qmpkit.images import Limits
from qmpkit.images.new import place_empty
from qmpkit.process.spawner import shared_spawner
from tests.live.image_tools import MIB, assert_same, left, written
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


# --- check


async def test_a_sound_image(qemu_img: str, tmp_path: Path) -> None:
    path = await images.create(tmp_path / "disk", "1MiB", "qcow2")
    report = await images.check(path, "qcow2")
    assert report.ok
    assert (report.errors, report.corruptions, report.leaks) == (0, 0, 0)


async def test_leaks_and_corruptions_are_found_and_mended(qemu_img: str, tmp_path: Path) -> None:
    path = await images.convert(
        written(tmp_path / "raw", MIB), tmp_path / "disk", source_format="raw", format="qcow2"
    )
    content = bytearray(path.read_bytes())
    refcounts = int.from_bytes(content[48:56], "big")
    block = int.from_bytes(content[refcounts : refcounts + 8], "big")
    last = len(content) // 65536 - 1
    content[block + 2 * last : block + 2 * last + 2] = b"\0\0"  # in use, and said to be free
    content += bytes(65536)
    content[block + 2 * last + 2 : block + 2 * last + 4] = b"\0\1"  # used by nobody
    path.write_bytes(content)
    found = await images.check(path, "qcow2")
    assert not found.ok
    assert found.corruptions > 0
    assert found.leaks == 1
    mended = await images.check(path, "qcow2", repair="all")
    assert mended.ok
    assert (mended.corruptions_fixed > 0, mended.leaks_fixed) == (True, 1)
    assert (await images.check(path, "qcow2")).leaks == 0


async def wrecked(folder: Path) -> Path:
    """An image whose tables are noise: qemu-img has a complaint for each cluster."""
    raw = folder / "raw"
    raw.write_bytes(random.Random(1).randbytes(8 * MIB))
    path = await images.convert(raw, folder / "disk", source_format="raw", format="qcow2")
    content, noise = bytearray(path.read_bytes()), random.Random(2)
    clusters, refcounts = (int.from_bytes(content[at : at + 8], "big") for at in (40, 48))
    tables = int.from_bytes(content[clusters : clusters + 8], "big") & 0x00FFFFFFFFFFFE00
    for table in (tables, refcounts):
        content[table : table + 65536] = noise.randbytes(65536)
    path.write_bytes(content)
    return path


async def test_a_wreck_has_a_verdict(qemu_img: str, tmp_path: Path) -> None:
    """qemu-img ends with a failure, and has reported all the same."""
    report = await images.check(await wrecked(tmp_path), "qcow2")
    assert not report.ok
    assert report.errors > 0
    assert report.corruptions > 1000


async def test_a_wreck_that_cannot_be_mended_is_told_in_short(
    qemu_img: str, tmp_path: Path
) -> None:
    path = await wrecked(tmp_path)
    with pytest.raises(ImageFailed) as caught:
        await images.check(path, "qcow2", repair="all")
    lines = str(caught.value).splitlines()
    assert len(lines) == 17
    assert lines[0].startswith(f"cannot repair {str(path)!r}: ERROR")
    assert re.fullmatch(r"… \d{4,} lines more …", lines[8])
    assert lines[-1].startswith("Check failed: ")
    assert lines[-1].endswith("Cure: copy the file before repairing it")


async def test_raw_cannot_be_checked(qemu_img: str, tmp_path: Path) -> None:
    path = await images.create(tmp_path / "disk", "1MiB", "raw")
    with pytest.raises(ImageFailed, match=r"does not support checks.*only formats with metadata"):
        await images.check(path, "raw")


# --- resize


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_resize(qemu_img: str, tmp_path: Path, format: str) -> None:
    path = await images.create(tmp_path / "disk", "1MiB", format)

    async def resized(size: int | str, *, shrink: bool = False) -> int:
        return await images.resize(path, size, format, shrink=shrink) // 1024

    async with shared_spawner():
        assert await resized("2MiB") == 2048
        assert await resized("+512KiB") == 2560
        assert await resized(3 * MIB) == 3072
        for smaller in ("1MiB", "-1MiB"):
            with pytest.raises(ImageFailed, match="Cure: say shrink=True"):
                await resized(smaller)
        assert await resized("-1MiB", shrink=True) == 2048
        assert await resized("1MiB", shrink=True) == 1024
        with pytest.raises(ImageFailed):
            await resized("-2MiB", shrink=True)


# --- convert


async def test_the_target_is_replaced_in_one_step_or_not_at_all(
    qemu_img: str, tmp_path: Path, draft: str
) -> None:
    raw = written(tmp_path / "raw", MIB)
    target = tmp_path / "target"
    target.write_text("precious")
    with pytest.raises(ImageFailed, match="it exists already"):
        await images.convert(raw, target, source_format="raw", format="qcow2")
    assert target.read_text() == "precious"
    with pytest.raises(ImageFailed):
        await images.convert(raw, target, source_format="qcow2", format="qcow2", replace=True)
    assert target.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to("target")
    await images.convert(raw, link, source_format="raw", format="qcow2", replace=True)
    assert link.is_symlink()
    await assert_same(raw, "raw", target, "qcow2", qemu_img)
    await images.convert(target, target, source_format="qcow2", format="raw", replace=True)
    assert target.read_bytes() == raw.read_bytes()
    assert left(tmp_path) == {"raw", "target", "link"}
    with pytest.raises(ImageFailed, match="it is no regular file"):
        await images.convert(raw, tmp_path, source_format="raw", format="raw", replace=True)


async def test_progress(qemu_img: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(1).randbytes(16 * MIB))
    seen = []
    async with images.converting(
        raw, tmp_path / "disk", source_format="raw", format="qcow2", compress=True
    ) as progress:
        async for fraction in progress:
            seen.append(fraction)
            assert (tmp_path / "disk").exists() is (fraction == 1.0)
    assert len(seen) > 5
    assert seen == sorted(set(seen))
    assert (seen[0], seen[-1], progress.fraction) == (0.0, 1.0, 1.0)


async def test_nobody_has_to_look(qemu_img: str, tmp_path: Path) -> None:
    raw = written(tmp_path / "raw", MIB)
    target = tmp_path / "disk"
    async with images.converting(raw, target, source_format="raw", format="qcow2"):
        pass
    assert target.exists()


async def test_a_failure_ends_the_looking(qemu_img: str, tmp_path: Path) -> None:
    raw = written(tmp_path / "raw", MIB)
    with pytest.raises(ImageFailed, match="not in qcow2 format"):
        async with images.converting(
            raw, tmp_path / "disk", source_format="qcow2", format="raw"
        ) as progress:
            async for _ in progress:
                pass
    with pytest.raises(ZeroDivisionError):
        async with images.converting(raw, tmp_path / "disk", source_format="raw", format="raw"):
            raise ZeroDivisionError
    assert left(tmp_path) == {"raw"}


# --- limits


def noise(path: Path, size: int) -> Path:
    """A raw image that takes a while to compress: deflate is quick to give up on true noise."""
    block = random.Random(1).randbytes(MIB).translate(bytes(n % 16 for n in range(256)))
    with path.open("wb") as file:
        for number in range(size // MIB):
            file.write(block[number:] + block[:number])
    return path


LIMITS = [
    (Limits(memory=8 * MIB), "wanted more than 8MiB of memory.*raise limits.memory"),
    (Limits(file_size=MIB), "grew to more than 1MiB.*raise limits.file_size"),
    (Limits(time=0.02), r"took more than 0.02 s.*raise limits.time"),
    (Limits(cpu=1), r"more than 1 s of CPU.*raise limits.cpu"),
]


async def test_limits(qemu_img: str, tmp_path: Path) -> None:
    raw = noise(tmp_path / "raw", 160 * MIB)  # some three seconds of CPU: no host makes it one
    for limits, words in LIMITS:
        with pytest.raises(ImageFailed, match=words):
            await images.convert(
                raw,
                tmp_path / "disk",
                source_format="raw",
                format="qcow2",
                compress=True,
                limits=limits,
            )
        assert left(tmp_path) == {"raw"}


async def test_limits_of_the_others(
    qemu_img: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = await images.create(tmp_path / "disk", "64TiB", "qcow2")
    # A child is limited a moment after its start: this one begins later, however busy the host.
    slow = tmp_path_factory.mktemp("bin") / "qemu-img"
    slow.write_text(f'#!/bin/sh\nsleep 0.1\nexec {qemu_img} "$@"\n')
    slow.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        await _limited(path, tmp_path)
    assert left(tmp_path) == {"disk"}
    assert (await images.check(path, "qcow2")).ok


async def _limited(path: Path, tmp_path: Path) -> None:
    little = Limits(memory=4 * MIB)
    for ask in (
        lambda: images.info(path, limits=little),
        lambda: images.chain(path, limits=little),
        lambda: images.check(path, "qcow2", limits=little),
        lambda: images.resize(path, "+1GiB", "qcow2", limits=little),
        lambda: images.create(tmp_path / "new", "1GiB", "qcow2", limits=little),
        lambda: images.overlay(tmp_path / "new", path, "qcow2", limits=little),
        lambda: place_empty(tmp_path / "new", "1GiB", "raw", limits=little),
    ):
        with pytest.raises(ImageFailed, match="wanted more than 4MiB of memory"):
            await ask()
