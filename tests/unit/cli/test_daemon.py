"""The client of a daemon: whoever answers, and however, it is a sentence with a cure."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qmpkit.cli import farm_actions, serve
from qmpkit.cli.daemon import Daemon, DaemonAbsent, DaemonSilent, find_daemon
from qmpkit.cli.exits import DaemonSaid, Exit, exit_of


@contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[Daemon]:
    """A listener that says *answer* to one request and hangs up; None: it says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        held: list[socket.socket] = []

        def serve() -> None:
            client, _ = listener.accept()
            held.append(client)
            client.recv(65536)
            if answer is not None:
                client.sendall(answer)
                client.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Daemon("lab", path)
        finally:
            thread.join()
            for client in held:
                client.close()


def _http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_what_it_says(tmp_path: Path) -> None:
    with answering(tmp_path / "s", _http("200 OK", '{"machines": []}')) as daemon:
        assert daemon.get("machines") == {"machines": []}


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        ('["SpecInvalid", "QmpkitError"]', Exit.MISTAKE),
        ('["JournalFailed", "HostLacks", "QmpkitError"]', Exit.HOST),
        ('["LaunchFailed", "QmpkitError"]', Exit.FAILED),
    ],
)
def test_its_errors_are_ours(kinds: str, status: Exit, tmp_path: Path) -> None:
    body = f'{{"error": {{"kinds": {kinds}, "message": "no"}}}}'
    with (
        answering(tmp_path / "s", _http("400 Bad", body)) as daemon,
        pytest.raises(DaemonSaid, match="no") as caught,
    ):
        daemon.get("machines")
    assert exit_of(caught.value) is status


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", r"^[^:]* has gone while it answered\. Cure: `qmpkit serve"),
        (b"SSH-2.0 hello\r\n", "has gone while it answered"),
        (_http("500 Oops", "no json"), "is no daemon of qmpkit's"),
        (_http("500 Oops", "[1]"), "is no daemon of qmpkit's"),
        (_http("500 Oops", '{"error": 1}'), "is no daemon of qmpkit's"),
    ],
)
def test_strange_answers(answer: bytes, words: str, tmp_path: Path) -> None:
    with (
        answering(tmp_path / "s", answer) as daemon,
        pytest.raises(DaemonAbsent, match=words),
    ):
        daemon.get("machines")


def test_one_that_says_nothing(tmp_path: Path) -> None:
    with (
        answering(tmp_path / "s", None) as daemon,
        pytest.raises(DaemonAbsent, match=r"nothing for 0\.1 s"),
    ):
        daemon.raw("GET", "machines", timeout=0.1)


def test_one_before_which_many_wait_says_nothing_either(tmp_path: Path) -> None:
    """It was said to have gone: the kernel refuses whoever would not wait."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as before:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        before.connect(str(tmp_path / "s"))
        daemon = Daemon("lab", tmp_path / "s")
        with pytest.raises(DaemonSilent, match=r"nothing for 0\.1 s"):
            daemon.raw("GET", "machines", timeout=0.1)
        held: list[socket.socket] = []
        threading.Timer(0.2, lambda: held.append(listener.accept()[0])).start()
        with pytest.raises(DaemonSilent, match=r"nothing for 1 s"):  # there is room for it by then
            daemon.raw("GET", "machines", timeout=1)
        held.pop().close()


def test_up_starts_no_second_daemon_beside_one_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while systemd is starting it: both would want the farm."""
    started: list[str] = []
    monkeypatch.setattr(farm_actions, "_STARTING", 0.1)
    monkeypatch.setattr(serve, "detach", started.append)
    with answering(tmp_path / "s", None) as daemon:
        monkeypatch.setattr(farm_actions, "find_daemon", lambda _: daemon)
        with pytest.raises(DaemonSilent):
            farm_actions.running_daemon("lab")
    assert started == []


def test_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(tmp_path / "run"))
    with pytest.raises(DaemonAbsent, match="serve --farm lab --detach"):
        find_daemon("lab")
    with pytest.raises(DaemonAbsent, match="no daemon runs"):
        Daemon("lab", tmp_path / "nothing").get()


def test_events_until_it_ends(tmp_path: Path) -> None:
    said = b': listening\n\nevent: happening\ndata: {"a": 1}\n\n'
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + said
    with answering(tmp_path / "s", answer) as daemon:
        assert list(daemon.events("events")) == [("", None), ("happening", {"a": 1})]


def test_no_step_leaves_its_place() -> None:
    daemon = Daemon("lab", Path("/x"))
    assert daemon.target("machines", "../../etc?x") == "/v1/machines/..%2F..%2Fetc%3Fx"
    assert daemon.target("events", query={"since": -1}) == "/v1/events?since=-1"
