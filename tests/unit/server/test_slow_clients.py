"""Clients that send byte by byte and never finish are cut off; the others do not notice."""

from __future__ import annotations

import itertools
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trio

from qmpkit.server import bodies
from tests.unit.server.conftest import Served, served

pytestmark = pytest.mark.usefixtures("state")

BEFORE = 0.4  # seconds that they are let do so
EVERY = 0.05
SOMAXCONN = int(Path("/proc/sys/net/core/somaxconn").read_text())


def _trickled(sock: socket.socket, head: bytes, more: bytes) -> tuple[bytes, float]:
    """Send *head*, then *more* again and again byte by byte; what is answered, and after how long.

    Blocking; an answer ends when the other side hangs up.
    """
    began, said = time.monotonic(), b""
    sock.settimeout(EVERY)
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(head)
        for byte in itertools.cycle(more):
            sock.sendall(bytes([byte]))
            with suppress(TimeoutError):
                if not (chunk := sock.recv(65536)):
                    break
                said += chunk
            assert time.monotonic() - began < 20 * BEFORE, f"it goes on and on: {said!r}"
    with suppress(TimeoutError, ConnectionResetError):  # it hung up between two of ours
        while chunk := sock.recv(65536):
            said += chunk
    return said, time.monotonic() - began


async def _cut_off(daemon: Served, head: bytes, more: bytes) -> bytes:
    began = time.monotonic()  # before the daemon's own clock, which starts at the connection
    with daemon.client.connected() as sock:
        said, _ = await trio.to_thread.run_sync(_trickled, sock, head, more)
    assert time.monotonic() - began >= BEFORE
    return said


async def test_a_head_that_never_ends() -> None:
    async with served(idle=BEFORE) as daemon, trio.open_nursery() as nursery:
        nursery.start_soon(_cut_off, daemon, b"GET /v1 HTTP/1.1\r\n", b"X: y\r\n")
        nursery.start_soon(_cut_off, daemon, b"", b"GET")
        status, _ = await daemon.client.ask("GET", "/v1")
        assert status == 200


async def test_a_second_head_that_never_ends() -> None:
    async with served(idle=BEFORE) as daemon:
        whole = b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n"
        said = await _cut_off(daemon, whole + b"GET /v1 HTTP/1.1\r\n", b"X: y\r\n")
        assert said.count(b"HTTP/1.1 200") == 1


async def test_a_body_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PATIENCE", BEFORE)
    async with served() as daemon:
        head = b"POST /v1/up HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        said = await _cut_off(daemon, head, b" ")
        assert said.startswith(b"HTTP/1.1 408")
        assert b"was not here within 0.4 s" in said


async def test_a_body_that_nobody_asked_for_never_ends() -> None:
    async with served(idle=BEFORE) as daemon:
        head = b"GET /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        with daemon.client.connected() as sock:
            said, _ = await trio.to_thread.run_sync(_trickled, sock, head, b" ")
        assert said.startswith(b"HTTP/1.1 200")


async def test_hundreds_may_come_at_once() -> None:
    """More than hypercorn would have wait, while the loop is at something else."""
    async with served() as daemon:
        assert (await daemon.client.ask("GET", "/v1"))[0] == 200  # it listens as hypercorn does
        with ExitStack() as clients:
            for _ in range(min(300, SOMAXCONN)):
                sock = clients.enter_context(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
                sock.connect(str(daemon.path))
        assert (await daemon.client.ask("GET", "/v1"))[0] == 200
