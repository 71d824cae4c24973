"""What keeps a template from being made is found out before its guest has booted."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from qmpkit.errors import BinaryMissing, HostLacks, ImageFailed
from qmpkit.spec.machine import MachineSpec
from qmpkit.templates.make import make_template
from qmpkit.vm import VM

SPEC = MachineSpec(name="web", memory="256MiB", qemu="/no/such/qemu")


async def _never(_: VM) -> None:
    raise AssertionError("it was booted")


def _has(monkeypatch: pytest.MonkeyPatch, blocks: int, free: int) -> None:
    found = SimpleNamespace(f_blocks=blocks, f_bavail=free, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: found)


@pytest.mark.parametrize("ram", [None, "full/ram"])
async def test_a_ram_without_room_is_refused(
    ram: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    _has(monkeypatch, 1 << 20, (64 << 20) // 4096 + 1)
    place = tmp_path if ram is None else tmp_path / "full"
    told = f"takes 256MiB, and where its file is to be, '{place}', 64MiB are free. Cure: free some"
    with pytest.raises(HostLacks, match=re.escape(told)):
        await make_template(SPEC, tmp_path / "web", _never, ram=ram and tmp_path / ram, twins=True)
    assert _names(tmp_path) == ["full"]


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


async def test_a_ram_at_no_place_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for ram, why in [
        ("file", r"there is something already\. Cure: choose another"),
        ("file/ram", r"Not a directory\. Cure: a part of the path is a file"),
        ("none/ram", "No such file or directory"),
    ]:
        told = f"cannot put the RAM of a template at '.*/{ram}': {why}"
        with pytest.raises(ImageFailed, match=told):
            await make_template(SPEC, tmp_path / "web", _never, ram=tmp_path / ram, twins=True)
    assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize(("blocks", "free"), [(0, 0), (1 << 20, 65536)])
async def test_one_with_room_goes_on(
    blocks: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without a bound, as a tmpfs may be, tells of no blocks at all."""
    _has(monkeypatch, blocks, free)
    with pytest.raises(BinaryMissing, match="/no/such/qemu"):
        await make_template(SPEC, tmp_path / "web", _never, twins=True)
    assert _names(tmp_path) == []
