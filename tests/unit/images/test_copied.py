"""Copies of files, whatever the kernel can do between their file systems."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qmpkit.errors import ImageFailed
from qmpkit.images.hashing import copied
from qmpkit.images.tool import Asked

CONTENT = os.urandom((1 << 20) + 7)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "old").write_bytes(CONTENT)
    return tmp_path / "old"


def _failing(monkeypatch: pytest.MonkeyPatch, code: int, after: int = 0) -> None:
    """The kernel copies *after* bytes, and says *code* then."""
    calls = iter([after] if after else [])
    own = os.copy_file_range

    def copy_file_range(old: int, new: int, count: int) -> int:
        if (some := next(calls, 0)) == 0:
            raise OSError(code, os.strerror(code))
        return own(old, new, some)

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)


@pytest.mark.parametrize("after", [0, 4096])
@pytest.mark.parametrize("code", ["EXDEV", "ENOSYS", "EINVAL", "EOPNOTSUPP", "EPERM"])
async def test_what_the_kernel_does_not_copy_is_copied_by_hand(
    code: str, after: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, getattr(errno, code), after)
    target = source.with_name("new")
    await copied(source, target, Asked("copy", target))
    assert target.read_bytes() == CONTENT


async def test_a_kernel_that_copies_nothing_is_not_believed(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    target = source.with_name("new")
    await copied(source, target, Asked("copy", target))
    assert target.read_bytes() == CONTENT


async def test_a_full_disk_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, errno.ENOSPC)
    target = source.with_name("new")
    with pytest.raises(ImageFailed, match="No space left on device"):
        await copied(source, target, Asked("copy", target))
