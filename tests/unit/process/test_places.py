"""Where kept machines are: paths that fit, directories that are ours, one lock."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.errors import HostLacks, SupervisorRunning
from qmpkit.process.places import (
    Places,
    claimed_places,
    fresh,
    second_of,
    state_root,
    who_is_at,
)
from qmpkit.process.sockets import listening_socket


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    runtime = tempfile.mkdtemp(prefix="qk-")
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", runtime)
    yield Path(runtime)
    shutil.rmtree(runtime, ignore_errors=True)


def test_the_state_root_by_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QMPKIT_STATE_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_root() == Path("/var/lib/qmpkit")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert state_root() == Path("/xdg/qmpkit")
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    assert state_root() == Path.home() / ".local/state/qmpkit"


def test_directories_for_us_alone(root: Path, tmp_path: Path) -> None:
    with claimed_places("lab") as places:
        assert places.state == tmp_path / "state/lab"
        assert places.runtime == root / "lab"
        for made in (places.state, places.journal.parent, places.runtime):
            assert made.stat().st_mode & 0o777 == 0o700
        assert places.sockets("web") == root / "lab/web"
    assert [*root.iterdir()] == [], "what can be made again is gone"
    assert (tmp_path / "state/lab/machines").is_dir()


def test_sockets_that_are_left_stay(root: Path) -> None:
    with claimed_places("lab") as places:
        fresh(places.sockets("web"))
    with claimed_places("lab") as places:
        assert (root / "lab/web").is_dir()


def test_a_second_supervisor_is_refused_with_the_holders_process() -> None:
    with claimed_places("lab"):
        refused = pytest.raises(SupervisorRunning, match=f"'lab'.*process {os.getpid()}. Cure")
        with refused as caught, claimed_places("lab"):
            pytest.fail("it was let in")
        with claimed_places("other"):
            pass
    assert caught.value.pid == os.getpid()
    with claimed_places("lab"):
        pass


def test_a_killed_holder_has_no_lock() -> None:
    program = (
        "from qmpkit.process.places import claimed_places\n"
        "with claimed_places('lab'):\n    print('held', flush=True)\n    input()"
    )
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(SupervisorRunning) as caught, claimed_places("lab"):
            pytest.fail("it was let in")
        assert caught.value.pid == holder.pid
        holder.kill()
    with claimed_places("lab"):
        pass


def test_two_state_directories_do_not_meet(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimed_places("lab") as first:
        monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "elsewhere"))
        with claimed_places("lab") as second:
            assert second.runtime != first.runtime
            assert second.runtime.parent == root


def test_a_name_like_a_blocks_directory_is_not_swept_with_those(root: Path) -> None:
    with claimed_places("lab.1234567.abcd") as places:
        assert places.runtime.name.startswith("k.")


def test_a_state_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/lab").symlink_to(tmp_path)
    refused = pytest.raises(HostLacks, match=r"state directory .* is a symbolic link.*STATE_DIR")
    with refused, claimed_places("lab"):
        pytest.fail("it was let in")


@pytest.mark.parametrize("length", [40, 60, 75, 100, 200])
def test_long_roots_and_names_give_sockets_that_bind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    base = Path(tempfile.mkdtemp(prefix="q-"))
    root = base
    while len(str(root)) < length - 1:
        root = root / ("r" * min(60, length - len(str(root)) - 1))
    root.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(root / "q"))
    try:
        for name, machine in (("lab", "web"), ("s" * 64, "m" * 64), ("ü" * 32, "é" * 32)):
            with claimed_places(name) as places:
                fresh(places.sockets(machine))
                for channel in ("qmp", "c" * 20):
                    path = places.sockets(machine) / channel
                    with listening_socket(path), socket.socket(socket.AF_UNIX) as client:
                        client.connect(str(path))
                shutil.rmtree(places.sockets(machine))
            assert not places.runtime.exists()
    finally:
        shutil.rmtree(base)


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1).filter(
    lambda name: len(name.encode()) <= 64
)


@given(_NAMES, _NAMES)
def test_two_machines_have_two_directories(one: str, other: str) -> None:
    places = Places(Path("/state"), Path("/run/qmpkit/" + "s" * 50))
    assert (places.sockets(one) == places.sockets(other)) == (one == other)
    assert len(os.fsencode(places.sockets(one))) + 21 <= 107


@pytest.mark.parametrize("name", ["web", "m" * 64])
def test_which_of_two_processes_has_a_directory(name: str, tmp_path: Path) -> None:
    """Also where the paths would be too long, and when the runtime directory is another one now."""
    for runtime in (Path("/run/qmpkit/lab"), tmp_path / ("r" * 40)):
        places = Places(tmp_path, runtime)
        second = second_of(name)
        assert second != name
        assert who_is_at(places.sockets(name), name) == name
        assert who_is_at(places.sockets(second), name) == second
