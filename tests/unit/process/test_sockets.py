"""Sockets that we bind: whole or not at all, and removed only while they are ours."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from qmpkit.errors import HostLacks, SpecInvalid
from qmpkit.process.sockets import listening_socket, remover_of


def test_it_listens_for_nobody_but_us(tmp_path: Path) -> None:
    path = tmp_path / "tools"
    with listening_socket(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        remover_of(path)()
    assert not path.exists()


def test_what_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HostLacks, match=r"mkdir -p"):
        listening_socket(tmp_path / "no" / "tools")

    def refuse(*_: object) -> None:
        raise PermissionError

    path = tmp_path / "tools"
    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(PermissionError):
        listening_socket(path)
    assert not path.exists()


def test_what_has_come_to_its_place_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("tools")
    with listening_socket(path):
        remove = remover_of(path)
        with pytest.raises(SpecInvalid, match=r"this path exists"):
            listening_socket(path)
    monkeypatch.chdir("/")
    (tmp_path / path).unlink()
    remove()  # nothing there, as after every orderly end
    with listening_socket(tmp_path / path):
        remove()
        assert (tmp_path / path).is_socket()
    (tmp_path / path).unlink()
    (tmp_path / path).mkdir()
    remove()
    assert (tmp_path / path).is_dir()
