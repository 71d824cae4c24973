"""The switch program, with real sockets for ports."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qmpkit.networks import _switch_main

EVERYBODY = b"\xff" * 6
A, B = (b"\x52\x54\x00\x00\x00" + bytes([n]) for n in (1, 2))


@contextmanager
def running(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    (directory / "switch").unlink(missing_ok=True)
    argv = [sys.executable, "-I", "-S", _switch_main.__file__, str(directory)]
    with subprocess.Popen(argv) as process:
        deadline = time.monotonic() + 10
        while not (directory / "switch").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
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
    switch = str(where / "switch")
    with running(where), port(where, "a") as a, port(where, "b") as b, port(where, "c") as c:
        a.sendto(EVERYBODY + A + b"..hello", switch)
        assert b.recv(99) == c.recv(99) == EVERYBODY + A + b"..hello"
        b.sendto(A + B + b"..answer", switch)
        assert a.recv(99) == A + B + b"..answer"
        b.sendto(EVERYBODY + B + b"..mark", switch)
        assert c.recv(99) == EVERYBODY + B + b"..mark"  # and not the answer before it


def test_a_restarted_switch_goes_on(where: Path) -> None:
    switch = str(where / "switch")
    with port(where, "a") as a, port(where, "b") as b:
        for word in (b"..one", b"..two"):
            with running(where):
                a.sendto(EVERYBODY + A + word, switch)
                assert b.recv(99) == EVERYBODY + A + word


def test_bad_frames_and_vanished_ports_do_no_harm(where: Path) -> None:
    switch = str(where / "switch")
    with running(where), port(where, "a") as a, port(where, "c") as c:
        (where / "stale").touch()
        a.sendto(b"short", switch)
        a.sendto(EVERYBODY + A + b"..good", switch)
        assert c.recv(99) == EVERYBODY + A + b"..good"
