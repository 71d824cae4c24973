"""The daemon as a process: in the background with a log in bounds, and by systemd's socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import serve
from qmpkit.cli.daemon import DaemonAbsent, find_daemon
from qmpkit.cli.daemon_log import DAEMON_LOG_LIMIT
from qmpkit.cli.farm_actions import running_daemon
from qmpkit.process.places import claimed_places
from qmpkit.server.door import doors, shared_door

# As systemd does it: the socket is descriptor 3, the number that of the process itself.
_ACTIVATED = 'exec 3<&"$1"; export LISTEN_FDS=1 LISTEN_PID=$$; shift; exec "$@"'
_SERVE = [sys.executable, "-m", "qmpkit.cli", "serve", "--farm", "lab"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the farm "lab" has on record, in places of the test's own."""
    runtime = Path(tempfile.mkdtemp(prefix="qk-"))  # short, as the paths of sockets are to be
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(runtime / "run"))
    (runtime / "run").mkdir(mode=0o700)
    yield tmp_path / "state" / "lab"
    shutil.rmtree(runtime)


@contextmanager
def popened() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The daemons that are started in the block."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: Any, **options: Any) -> None:
        started.append(_popen(*words, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", start)  # who detaches does not wait for it
        yield started


@contextmanager
def detached() -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the background, ended with the block."""
    with popened() as started:
        serve.detach("lab")
    with started[0] as daemon:
        yield daemon
        daemon.terminate()


_popen = subprocess.Popen


def test_commands_that_start_it_at_the_same_time_have_one(state: Path) -> None:
    with popened() as started:
        try:
            with ThreadPoolExecutor(3) as commands:
                found = list(commands.map(running_daemon, ["lab"] * 3))
            assert {daemon.get()["pid"] for daemon in found} == {started[0].pid}
            assert len(started) == 1
        finally:
            for process in started:
                process.terminate()
                process.wait()


def test_its_log_stays_in_bounds_while_it_runs(state: Path) -> None:
    log, old = state / "daemon.log", state / "daemon.log.1"
    state.mkdir(parents=True, mode=0o700)
    log.write_bytes(b"x" * (DAEMON_LOG_LIMIT - 1000))
    with detached(), log.open("ab") as file:  # as if something had said much past its log
        file.write(b"y" * 1000)
    assert DAEMON_LOG_LIMIT <= old.stat().st_size < DAEMON_LOG_LIMIT + 4096
    assert "SIGTERM: the daemon ends" in log.read_text()
    assert log.stat().st_size < 4096


def test_a_place_that_is_empty_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QMPKIT_STATE_DIR", "")
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", "run")
    told = serve._environment()
    assert (told["QMPKIT_STATE_DIR"], told["QMPKIT_RUNTIME_DIR"]) == ("", str(tmp_path / "run"))


@contextmanager
def opened_by_systemd(farm: str = "lab") -> Iterator[socket.socket]:
    path = shared_door(farm)
    path.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        yield listener
        assert path.is_socket(), "it is systemd's"


@contextmanager
def activated(listener: socket.socket) -> Iterator[subprocess.Popen[str]]:
    fd = listener.fileno()
    words = ["bash", "-c", _ACTIVATED, "bash", str(fd), *_SERVE]
    with subprocess.Popen(words, pass_fds=[fd], stderr=subprocess.PIPE, text=True) as daemon:
        try:
            yield daemon
        finally:
            daemon.terminate()


def test_the_first_who_asks_is_answered_by_the_daemon_that_starts_then(state: Path) -> None:
    with opened_by_systemd() as listener:
        assert find_daemon("lab").path == shared_door("lab"), "nobody has run here yet"
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as first:
                first.settimeout(60)
                first.connect(str(shared_door("lab")))
                first.sendall(b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n")
                with activated(listener) as daemon:
                    assert first.recv(65536).startswith(b"HTTP/1.1 200")
                    root = find_daemon("lab").get()
                    assert root["pid"] == daemon.pid
                    environment = Path(f"/proc/{daemon.pid}/environ").read_bytes()
                    assert b"LISTEN_FDS" in environment, "it was started as systemd does it"
            assert daemon.returncode == 0


def test_a_socket_that_strangers_may_use_is_refused(state: Path) -> None:
    with opened_by_systemd() as listener:
        shared_door("lab").chmod(0o666)
        with activated(listener) as daemon:
            _, said = daemon.communicate(timeout=30)
    assert daemon.returncode == 3
    assert "has the mode 0666, not 0600" in said
    assert "Cure: use both units" in said


def test_what_a_killed_daemon_left_is_not_asked(state: Path) -> None:
    with detached() as daemon:
        own, _ = doors("lab")
        daemon.kill()
        daemon.wait()
        assert own.is_socket()
    with pytest.raises(DaemonAbsent):
        find_daemon("lab").get()
    with opened_by_systemd() as listener:
        assert find_daemon("lab").path == shared_door("lab")
        with activated(listener) as daemon:
            assert find_daemon("lab").get()["pid"] == daemon.pid
            assert not own.exists()


def test_one_that_does_not_start_is_told_in_its_own_words_alone(state: Path) -> None:
    state.mkdir(parents=True)
    (state / "daemon.log").write_text("of the daemon before\n")
    # Not of a daemon that runs: it may have more to say meanwhile, in the same log.
    with claimed_places("lab"), popened() as started:
        with pytest.raises(serve.DaemonFailed) as caught:
            serve.detach("lab")
        started[0].wait(20)
    first, *words = str(caught.value).splitlines()
    assert first == "the daemon did not start:"
    assert len(words) == 1 and "is already run by process" in words[0]
