"""A source that does not know that its migration has failed, with a debugger for it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from qmpkit.machine.state import State
from qmpkit.operations.migration.unstuck import unstuck
from qmpkit.testing.leaks import leaks
from tests.unit.operations.migration.source import Source

STUCK = {"status": "device", "error-desc": "Channel error: Input/output error"}


class Debugged(Source):
    """Listens where it is told to, and runs when a debugger says so."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__("device")
        self.answer = STUCK
        self.told: list[str] = []
        self.runs = trio.Event()
        self.told_to_run: Callable[[], object] = self.runs.set
        self._nursery = nursery
        self._scope = trio.CancelScope()

    def asked(self, command: str, arguments: Mapping[str, Any], *, oob: bool) -> None:
        self.told.append(str(arguments["command-line"]))
        if found := re.fullmatch('gdbserver "unix:(.+),server=on,wait=off"', self.told[-1]):
            listening = trio.socket.socket(trio.socket.AF_UNIX)
            path = found[1].replace(",,", ",")
            assert Path(path).parent.stat().st_mode & 0o777 == 0o700
            listening._sock.bind(path)  # type: ignore[attr-defined]
            listening.listen(1)
            self._nursery.start_soon(self._serve, listening)
        elif self.told[-1] == "gdbserver none":
            self._scope.cancel()

    async def _serve(self, listening: trio.socket.SocketType) -> None:
        with self._scope, listening:
            connection, _ = await listening.accept()
            with connection:
                if await connection.recv(100) == b"$c#63":
                    self.told_to_run()
                await trio.sleep_forever()

    @contextmanager
    def expecting(self, *states: State) -> Iterator[trio.Event]:
        assert states == (State.RUNNING, State.SUSPENDED)
        yield self.runs


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="q,k") as folder:  # a short one
        monkeypatch.setenv("QMPKIT_RUNTIME_DIR", folder)
        yield


async def test_it_goes_on() -> None:
    async with leaks(), trio.open_nursery() as nursery:
        source: Any = Debugged(nursery)
        await unstuck(source)
        assert source.runs.is_set() and source.told[-1] == "gdbserver none"


async def test_one_that_fails_as_others_do_is_left_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        source: Any = Debugged(nursery)
        nursery.start_soon(unstuck, source)
        await trio.sleep(0.1)
        source.answer = {"status": "failed"}
        source.say("failed")
    assert source.told == [] and trio.current_time() == pytest.approx(0.1)


@pytest.mark.parametrize("status", ["device", "failed", "none"])
async def test_others_are_left_alone(status: str) -> None:
    async with trio.open_nursery() as nursery:
        source: Any = Debugged(nursery)
        source.answer = {"status": status}
        await unstuck(source)
    assert source.told == []


async def test_a_cancellation_leaves_no_debugger() -> None:
    async with leaks(), trio.open_nursery() as nursery:
        source: Any = Debugged(nursery)
        with trio.CancelScope() as scope:
            source.told_to_run = scope.cancel
            await unstuck(source)
        assert scope.cancelled_caught and source.told[-1] == "gdbserver none"
