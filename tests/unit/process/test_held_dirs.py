"""Directories that go with their program: who may remove which, and when."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from qmpkit.process.held_dirs import HeldDir, hold_new_dir, sweep

OURS = re.compile(r"d[0-9]+")


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_made_private_and_removed_with_all_in_it(tmp_path: Path) -> None:
    held = hold_new_dir(tmp_path, lambda: "d1")
    assert stat.S_IMODE(held.path.stat().st_mode) == 0o700
    (held.path / "below").mkdir()
    (held.path / "below" / "file").touch()
    held.remove()
    assert names(tmp_path) == set()


def test_a_taken_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d1").mkdir()
    wishes = iter(["d1", "d2"])
    assert hold_new_dir(tmp_path, lambda: next(wishes)).path == tmp_path / "d2"


def test_what_nobody_holds_is_swept(tmp_path: Path) -> None:
    for name in ("d1", "d2", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "d3").touch()
    (tmp_path / "d4").symlink_to("other")
    held = hold_new_dir(tmp_path, lambda: "d5")
    sweep(tmp_path, OURS)
    assert names(tmp_path) == {"other", "d3", "d4", "d5"}
    assert names(tmp_path / "other") == {"file"}
    held.remove()


def test_what_belongs_to_another_user_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d1").mkdir()
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    sweep(tmp_path, OURS)
    assert names(tmp_path) == {"d1"}


def test_a_fork_removes_nothing(tmp_path: Path) -> None:
    held = hold_new_dir(tmp_path, lambda: "d1")
    HeldDir(held.path, lock=-1, owner=os.getpid() + 1).remove()
    assert names(tmp_path) == {"d1"}


@pytest.mark.parametrize("moment", ["open", "flock"])
def test_swept_between_making_and_locking_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    module = os if moment == "open" else fcntl
    really = getattr(module, moment)
    swept: list[bool] = []

    def sweep_first(*args: object, **more: object) -> object:
        if not swept:
            swept.append(True)
            sweep(tmp_path, OURS)
        return really(*args, **more)

    monkeypatch.setattr(module, moment, sweep_first)
    wishes = iter(["d1", "d2"])
    held = hold_new_dir(tmp_path, lambda: next(wishes))
    assert names(tmp_path) == {"d2"} == {held.path.name}


def test_without_locks_it_is_made_and_nothing_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "d1").mkdir()
    held = hold_new_dir(tmp_path, lambda: "d2")
    sweep(tmp_path, OURS)
    assert names(tmp_path) == {"d1", "d2"}
    held.remove()


def test_many_make_and_sweep_at_once(tmp_path: Path) -> None:
    """Whoever has made a directory has it, whoever sweeps meanwhile."""
    lost: list[Path] = []

    def work(number: int) -> None:
        numbers = itertools.count(number * 10_000)
        for _ in range(200):
            held = hold_new_dir(tmp_path, lambda: f"d{next(numbers)}")
            sweep(tmp_path, OURS)
            if not held.path.exists():
                lost.append(held.path)
            held.remove()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert names(tmp_path) == set()
