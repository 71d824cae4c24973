"""Removing a template: all of it, its RAM elsewhere too, or nothing."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from qmpkit.errors import HostLacks
from qmpkit.templates.errors import TemplateInUse
from qmpkit.templates.saved import removed


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    (tmp_path / "ram").write_text("RAM")
    return tmp_path / "ram"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "place" / "web" / "clones").mkdir(parents=True)
    (tmp_path / "place" / "web" / "state").write_text("state")
    return tmp_path / "place" / "web"


def _whole(folder: Path, ram: Path) -> bool:
    alone = [*folder.parent.iterdir()] == [folder]
    return alone and (folder / "state").read_text() == "state" and ram.read_text() == "RAM"


def test_nothing_is_left_of_it(folder: Path, ram: Path) -> None:
    removed(folder, str(ram))
    assert not ram.exists() and [*folder.parent.iterdir()] == []


def test_a_ram_that_is_gone_is_no_reason_to_keep_it(folder: Path, ram: Path) -> None:
    ram.unlink()
    removed(folder, str(ram))
    assert not folder.exists()


def test_what_a_link_leads_to_is_not_removed_by_halves(folder: Path, ram: Path) -> None:
    link = ram.with_name("link")
    link.symlink_to(folder)
    with pytest.raises(HostLacks, match=f"a symbolic link to '{folder}'. Cure: name the folder"):
        removed(link, str(ram))
    assert _whole(folder, ram) and link.is_symlink()


def test_a_folder_that_has_to_stay_keeps_its_ram(
    folder: Path, ram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(_: Path, __: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(HostLacks, match=r"Read-only file system\. Cure: "):
            removed(folder, str(ram))
    assert _whole(folder, ram)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write wherever it is possible
    with pytest.raises(HostLacks, match="Permission denied"):
        removed(folder, str(ram))
    assert _whole(folder, ram)


def test_a_ram_that_has_to_stay_keeps_its_folder(folder: Path, ram: Path) -> None:
    stays = ram.with_name("directory")
    stays.mkdir()
    with pytest.raises(HostLacks, match="cannot remove the template"):
        removed(folder, str(stays))
    assert _whole(folder, ram)


def test_one_with_clones_is_left_alone(folder: Path, ram: Path) -> None:
    clone = os.open(folder, os.O_RDONLY)
    fcntl.flock(clone, fcntl.LOCK_SH)
    with pytest.raises(TemplateInUse):
        removed(folder, str(ram))
    assert _whole(folder, ram)
    os.close(clone)
