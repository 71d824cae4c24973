"""Files that are frozen and looked at again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmpkit.errors import ImageFailed
from qmpkit.images.tool import Asked
from qmpkit.templates.files import flaws_at_a_glance, flaws_in_full, frozen
from qmpkit.templates.manifest import SavedFile

LENGTH = 3 << 20


@pytest.fixture
async def saved(tmp_path: Path) -> SavedFile:
    (tmp_path / "disk").write_bytes(os.urandom(LENGTH))
    return await frozen(tmp_path, "disk", Asked("save", tmp_path))


def _changed(path: Path, offset: int, *, time: int | None = None) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        old = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([old[0] ^ 1]), offset)
    if time is not None:
        os.utime(path, ns=(time, time))


async def test_a_file_that_stays_is_fine(saved: SavedFile, tmp_path: Path) -> None:
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o444
    assert flaws_at_a_glance(tmp_path, [saved]) == ([], [])
    assert await flaws_in_full(tmp_path, [saved]) == []


async def test_a_change_in_a_sample_is_seen_at_a_glance(saved: SavedFile, tmp_path: Path) -> None:
    _changed(tmp_path / "disk", LENGTH - 1 - (LENGTH - (64 << 10)) % 15, time=saved.mtime_ns)
    flaws, doubtful = flaws_at_a_glance(tmp_path, [saved])
    assert flaws == ["disk: its checksum is another one: its content has changed"]
    assert doubtful == []


async def test_a_change_between_samples_is_seen_by_its_time_or_in_full(
    saved: SavedFile, tmp_path: Path
) -> None:
    _changed(tmp_path / "disk", (64 << 10) + 1)
    assert flaws_at_a_glance(tmp_path, [saved]) == ([], [saved])  # it is to be read
    _changed(tmp_path / "disk", (64 << 10) + 2, time=saved.mtime_ns)
    assert flaws_at_a_glance(tmp_path, [saved]) == ([], [])
    done: list[float] = []
    flaws = await flaws_in_full(tmp_path, [saved], done.append)
    assert flaws == ["disk: its checksum is another one: its content has changed"]
    assert done[-1] == 1.0


async def test_a_file_that_is_shorter_or_gone_is_told(saved: SavedFile, tmp_path: Path) -> None:
    (tmp_path / "disk").chmod(0o600)
    os.truncate(tmp_path / "disk", 5)
    assert flaws_at_a_glance(tmp_path, [saved])[0] == [f"disk: it has 5 bytes instead of {LENGTH}"]
    (tmp_path / "disk").unlink()
    assert await flaws_in_full(tmp_path, [saved]) == ["disk: it is missing"]


@pytest.mark.parametrize("length", [0, 1, 64 << 10, (64 << 10) + 1, 1 << 20, (1 << 20) + 7])
async def test_files_of_any_length(length: int, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x" * length)
    saved = await frozen(tmp_path, "odd", Asked("save", tmp_path))
    assert (saved.length, flaws_at_a_glance(tmp_path, [saved])) == (length, ([], []))
    if length:
        _changed(tmp_path / "odd", length - 1, time=saved.mtime_ns)  # the end is a sample
        assert flaws_at_a_glance(tmp_path, [saved])[0]


async def test_a_file_that_is_not_there_cannot_be_frozen(tmp_path: Path) -> None:
    with pytest.raises(ImageFailed, match="cannot save"):
        await frozen(tmp_path, "none", Asked("save", tmp_path))
