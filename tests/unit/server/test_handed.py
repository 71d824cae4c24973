"""A socket that systemd opened is taken when it is the door, and nothing else is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpkit.errors import HostLacks
from qmpkit.server.door import opened_door, shared_door
from qmpkit.server.handed import handed_over


@pytest.fixture
def door(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the farm "lab" has the socket that systemd opens; its directory is there."""
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(short / "run"))
    path = shared_door("lab")
    path.parent.mkdir(parents=True, mode=0o700)
    return path


@pytest.fixture
def listener(door: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(door))
        sock.listen()
        door.chmod(0o600)
        yield sock


def _opened(runtime: Path, fd: int, group: str | None = None) -> str:
    with opened_door("lab", runtime, group, fd) as (sock, path):
        assert sock.getsockname() == str(path)
        return str(path)


def test_the_right_one_is_taken_and_left_to_systemd(
    door: Path, listener: socket.socket, tmp_path: Path
) -> None:
    stale = tmp_path / ".api"
    stale.mkdir()
    assert _opened(tmp_path, listener.fileno()) == str(door)
    assert not stale.exists(), "what a killed daemon left there would be asked first"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(door))  # it still listens


def _refused(tmp_path: Path, fd: int, why: str, group: str | None = None) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(HostLacks, match=why) as caught:
        _opened(tmp_path, fd, group)
    assert "qmpkit systemd" in caught.value.cure
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o700])
def test_one_of_another_mode(
    mode: int, door: Path, listener: socket.socket, tmp_path: Path
) -> None:
    door.chmod(mode)
    _refused(tmp_path, listener.fileno(), f"has the mode 0{mode:o}, not 0600")


def test_one_for_another_group(door: Path, listener: socket.socket, tmp_path: Path) -> None:
    _refused(tmp_path, listener.fileno(), "has the mode 0600, not 0660", "games")
    door.chmod(0o660)
    _refused(tmp_path, listener.fileno(), "is open to group", "games")


def test_one_in_a_directory_that_is_open(
    door: Path, listener: socket.socket, tmp_path: Path
) -> None:
    door.parent.chmod(0o777)
    _refused(tmp_path, listener.fileno(), "others can put another in its place")


def test_one_at_another_place(door: Path, tmp_path: Path, short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short / "other"))
        sock.listen()
        _refused(tmp_path, sock.fileno(), f"is at '{short}/other', not at '{door}'")


def test_one_whose_path_is_gone(door: Path, listener: socket.socket, tmp_path: Path) -> None:
    door.unlink()
    _refused(tmp_path, listener.fileno(), "no longer at")


def test_one_that_does_not_listen(door: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(door))
        _refused(tmp_path, sock.fileno(), "does not listen")


def test_what_is_no_unix_socket(door: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        _refused(tmp_path, sock.fileno(), "no stream socket of a path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        _refused(tmp_path, sock.fileno(), "no stream socket of a path")
    with Path(os.devnull).open("rb") as file:
        _refused(tmp_path, file.fileno(), "is no socket")


@pytest.mark.parametrize(
    ("pid", "count", "found"), [(0, "1", 3), (1, "1", None), (0, "", None), (0, "0", None)]
)
def test_what_systemd_tells(
    pid: int, count: str, found: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "set_inheritable", lambda *what: closed.append(what))
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + pid))  # that of another process: not ours
    monkeypatch.setenv("LISTEN_FDS", count)
    assert handed_over() == found
    assert closed == ([] if found is None else [(3, False)])
    assert "LISTEN_FDS" not in os.environ, "what we start must not believe that it is meant"


def test_two_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "set_inheritable", lambda *what: None)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    with pytest.raises(HostLacks, match="passed 2 sockets"):
        handed_over()
