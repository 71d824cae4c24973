"""What comes packed is unpacked whole, in bounds, or refused in words."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from qmpkit.errors import BinaryMissing, ImageRefused, PullFailed
from qmpkit.images.store.unpack import Copied, Copying, hashed

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(MIB // 16) + bytes(5 * MIB // 4) + b"the end"


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda data: lzma.compress(data, preset=0),
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": lambda data: bz2.compress(data, 1),
    "zstd": zstd,
}
packed = pytest.mark.parametrize("how", PACKERS)


def copying(folder: Path, data: bytes, how: str, most: int = 64 * MIB) -> Copying:
    (folder / "origin").write_bytes(data)
    return Copying(
        source="https://example.org/disk",
        origin=folder / "origin",
        target=folder / "target",
        packed=how,
        most=most,
        algorithms=frozenset({"sha512"}),
        told=lambda done, total: None,
    )


def is_all(folder: Path, copied: Copied, content: bytes, data: bytes) -> None:
    assert (folder / "target").read_bytes() == content
    assert copied.digest == hashlib.sha256(content).hexdigest()
    assert copied.size == len(content)
    assert copied.sums == {"sha512": hashlib.sha512(data).hexdigest()}


@packed
@pytest.mark.parametrize("content", [CONTENT, b"", b"x", bytes(MIB)], ids=len)
async def test_it_is_unpacked(tmp_path: Path, how: str, content: bytes) -> None:
    data = PACKERS[how](content)
    is_all(tmp_path, await copying(tmp_path, data, how).run(), content, data)


@packed
async def test_streams_one_after_the_other(tmp_path: Path, how: str) -> None:
    data = PACKERS[how](CONTENT) + PACKERS[how](b"more")
    is_all(tmp_path, await copying(tmp_path, data, how).run(), CONTENT + b"more", data)


@pytest.mark.parametrize("how", ["xz", "gzip"])
async def test_zeros_fill_it_up(tmp_path: Path, how: str) -> None:
    data = PACKERS[how](CONTENT) + bytes(512)
    is_all(tmp_path, await copying(tmp_path, data, how).run(), CONTENT, data)


async def test_zeros_take_no_space(tmp_path: Path) -> None:
    content = bytes(4 * MIB) + b"x" + bytes(MIB)
    for how in ("", "gzip", "zstd"):
        data = PACKERS[how](content) if how else content
        is_all(tmp_path, await copying(tmp_path, data, how).run(), content, data)
        assert (tmp_path / "target").stat().st_blocks * 512 <= 2 * MIB


@packed
async def test_it_ends_too_early(tmp_path: Path, how: str) -> None:
    data = PACKERS[how](CONTENT)
    with pytest.raises(ImageRefused, match="it cannot be unpacked: "):
        await copying(tmp_path, data[: len(data) // 2], how).run()


@packed
async def test_it_is_damaged(tmp_path: Path, how: str) -> None:
    data = bytearray(PACKERS[how](CONTENT))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    with pytest.raises(ImageRefused, match="it cannot be unpacked: "):
        await copying(tmp_path, bytes(data), how).run()


@packed
async def test_a_bomb(tmp_path: Path, how: str) -> None:
    data = PACKERS[how](CONTENT + b"x" * 3 * MIB)
    with pytest.raises(PullFailed, match=r"unpacked it is larger than 2MiB\. Cure: raise"):
        await copying(tmp_path, data, how, most=2 * MIB).run()
    assert (tmp_path / "target").stat().st_size <= 2 * MIB


async def test_without_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = copying(tmp_path, zstd(CONTENT), "zstd")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing, match="Cure: sudo apt install zstd"):
        await work.run()


async def test_a_cancellation_ends_the_reading(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 42)
    with trio.fail_after(5), trio.move_on_after(0.05) as scope:
        await trio.to_thread.run_sync(hashed, big, {"sha256"})
    assert scope.cancelled_caught
