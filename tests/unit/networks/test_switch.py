"""The switch program, with real sockets for ports."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qmpkit.networks import _switch_main
from qmpkit.networks.segments import _announce, _prepared

EVERYBODY = b"\xff" * 6
A, B = (b"\x52\x54\x00\x00\x00" + bytes([n]) for n in (1, 2))


@contextmanager
def running(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as stack:
        command = _prepared(directory, stack)
        fds = list(command.fds.values())
        process = subprocess.Popen([*command.argv[:-1], *map(str, fds)], pass_fds=fds)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def where() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        yield Path(name)


def port(directory: Path, name: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(directory / name))
    made.settimeout(5)
    return made


def test_floods_then_sends_to_the_one_it_learned(where: Path) -> None:
    switch = str(where / ".datagrams")
    with running(where), port(where, "a") as a, port(where, "b") as b, port(where, "c") as c:
        a.sendto(EVERYBODY + A + b"..hello", switch)
        assert b.recv(99) == c.recv(99) == EVERYBODY + A + b"..hello"
        b.sendto(A + B + b"..answer", switch)
        assert a.recv(99) == A + B + b"..answer"
        b.sendto(EVERYBODY + B + b"..mark", switch)
        assert c.recv(99) == EVERYBODY + B + b"..mark"  # and not the answer before it


def test_a_restarted_switch_goes_on(where: Path) -> None:
    switch = str(where / ".datagrams")
    with port(where, "a") as a, port(where, "b") as b:
        for word in (b"..one", b"..two"):
            with running(where):
                a.sendto(EVERYBODY + A + word, switch)
                assert b.recv(99) == EVERYBODY + A + word


def test_bad_frames_and_vanished_ports_do_no_harm(where: Path) -> None:
    switch = str(where / ".datagrams")
    with running(where), port(where, "a") as a, port(where, "c") as c:
        (where / "stale").touch()
        a.sendto(b"short", switch)
        a.sendto(EVERYBODY + A + b"..good", switch)
        assert c.recv(99) == EVERYBODY + A + b"..good"


@contextmanager
def listening(directory: Path, name: str) -> Iterator[socket.socket]:
    """A port as QEMU has it, which the switch connects to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as port:
        port.bind(str(directory / f"@{name}"))
        port.listen(0)
        port.settimeout(5)
        yield port


def accepted(port: socket.socket) -> socket.socket:
    made, _ = port.accept()
    made.settimeout(5)
    return made


@contextmanager
def cable(directory: Path, name: str) -> Iterator[socket.socket]:
    with listening(directory, name) as port, accepted(port) as made:
        yield made


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def read(sock: socket.socket) -> bytes:
    return _exactly(sock, int.from_bytes(_exactly(sock, 4), "big"))


def _exactly(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += (more := sock.recv(size - len(got)))
        assert more, "it has ended"
    return got


def test_connections_and_datagrams_are_one_segment(where: Path) -> None:
    hello, answer = EVERYBODY + A + b"..hello", A + B + b"..answer"
    with running(where), port(where, "a") as a, cable(where, "b") as b, cable(where, "c") as c:
        a.sendto(hello, str(where / ".datagrams"))
        assert read(b) == read(c) == hello
        for byte in framed(answer):  # torn as it may be
            b.send(bytes([byte]))
        assert a.recv(99) == answer
        b.sendall(framed(EVERYBODY + B + b"..mark"))
        assert read(c) == EVERYBODY + B + b"..mark"  # and not the answer before it


def test_a_guest_that_does_not_read_holds_up_nobody_and_gets_whole_frames(where: Path) -> None:
    with (
        running(where),
        cable(where, "a") as a,
        cable(where, "deaf") as deaf,
        cable(where, "c") as c,
    ):
        frames = [EVERYBODY + A + number.to_bytes(2, "big") + bytes(60_000) for number in range(99)]
        for frame in frames:
            a.sendall(framed(frame))
            assert read(c) == frame
        kept = [read(deaf) for _ in range(10)]
        assert kept == frames[:10]


def test_who_sends_no_frames_is_cut_off_alone(where: Path) -> None:
    with running(where), cable(where, "a") as a, cable(where, "bad") as bad, cable(where, "c") as c:
        bad.sendall(b"GET / HTTP/1.1\r\n")
        assert bad.recv(9) == b""
        a.sendall(framed(EVERYBODY + A + b"..good"))
        assert read(c) == EVERYBODY + A + b"..good"


def test_who_is_cut_off_or_comes_again_is_connected_again(where: Path) -> None:
    hello = EVERYBODY + A + b"..hello"
    with running(where), cable(where, "a") as a:
        with listening(where, "b") as b:
            accepted(b).close()  # as when what it sent was no frame
            with accepted(b) as again:
                a.sendall(framed(hello))
                assert read(again) == hello
        a.sendall(framed(hello))
        (where / "@b").unlink()
        with cable(where, "b") as anew:  # another process
            a.sendall(framed(hello))
            assert read(anew) == hello


def test_a_restarted_switch_connects_to_all_again(where: Path) -> None:
    with listening(where, "a") as a, listening(where, "b") as b:
        for word in (b"..one", b"..two"):
            with running(where), accepted(a) as one, accepted(b) as other:
                one.sendall(framed(EVERYBODY + A + word))
                assert read(other) == EVERYBODY + A + word


def test_looks_at_once_when_it_is_told_that_one_comes(where: Path) -> None:
    with running(where), cable(where, "a"):
        time.sleep(1.5)  # it has come to look more rarely
        _announce(where / ".datagrams")
        began = time.monotonic()
        with cable(where, "b"):
            assert time.monotonic() - began < 0.5


def test_ends_when_nobody_can_reach_it_any_more(where: Path) -> None:
    with ExitStack() as stack:
        fds = _prepared(where, stack).fds
        switch = _switch_main.Switch(str(where), *map(os.dup, fds.values()))
        thread = threading.Thread(target=switch.serve, args=(0.02,), daemon=True)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        _prepared(where, stack)  # another's
        thread.join(5)
        assert not thread.is_alive()
        switch._datagrams.close()
