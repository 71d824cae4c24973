"""How a daemon ends: in order, at once when it is told twice, and whatever its clients do."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from qmpkit.errors import SupervisorRunning
from qmpkit.server import daemon as the_daemon
from qmpkit.server.daemon import run_daemon
from qmpkit.supervisor.supervisor import Supervisor
from tests.unit.server.client import Client

pytestmark = pytest.mark.usefixtures("state")


class Running:
    """A daemon in this process, to be ended by signals."""

    def __init__(self) -> None:
        self.ready, self.over = trio.Event(), trio.Event()
        self.path = Path()

    async def run(self) -> None:
        try:
            await run_daemon("lab", ready=self._at)
        finally:
            self.over.set()

    def _at(self, path: Path) -> None:
        self.path = path
        self.ready.set()

    def signal(self) -> None:
        assert not self.over.is_set(), "nobody would catch it"
        os.kill(os.getpid(), signal.SIGTERM)

    async def ended(self, within: float) -> float:
        """Seconds until it was over."""
        began = time.monotonic()
        with trio.fail_after(within):
            await self.over.wait()
        return time.monotonic() - began


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    daemon = Running()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run)
        await daemon.ready.wait()
        yield daemon
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def unread(path: Path) -> AsyncIterator[None]:
    """A client that asks on and on and reads no answer, so that the daemon waits to send one."""
    with Client(path).connected() as sock:
        await trio.to_thread.run_sync(_asked, sock)
        yield


def _asked(sock: socket.socket) -> None:
    # What is not found is told with its path: these answers fill what the kernel keeps.
    request = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 15000)
    sock.settimeout(1)
    with suppress(TimeoutError):  # it takes no more questions: it is sending
        while True:
            sock.sendall(request)


async def test_one_signal_ends_it() -> None:
    async with running() as daemon:
        daemon.signal()
        await daemon.ended(within=5)
        assert not daemon.path.exists()


async def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_daemon, "_END_GRACE", 0.5)
    async with running() as daemon, unread(daemon.path):
        daemon.signal()
        assert await daemon.ended(within=10) >= 0.4


async def test_a_second_signal_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_daemon, "_END_GRACE", 600.0)
    async with running() as daemon, unread(daemon.path):
        daemon.signal()
        with pytest.raises(trio.TooSlowError):
            await daemon.ended(within=0.5)
        daemon.signal()
        await daemon.ended(within=10)
        assert not daemon.path.exists()


async def test_it_ends_while_it_still_adopts(monkeypatch: pytest.MonkeyPatch) -> None:
    adopting = trio.Event()

    async def forever(_: Supervisor) -> None:
        adopting.set()
        await trio.sleep_forever()

    monkeypatch.setattr(Supervisor, "__aenter__", forever)
    daemon = Running()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run)
        await adopting.wait()
        daemon.signal()
        await daemon.ended(within=5)


async def test_a_second_daemon_is_refused_plainly() -> None:
    async with running():
        with pytest.raises(SupervisorRunning):
            await run_daemon("lab")
