"""Machines whose QEMU is a `FakeQemu`: for everything above the monitor, on the test's clock.

host = FakeHost()
async with launched(resolution, start=host.start) as machine:
    host["vm"].qemu.misbehave("stop", Late(3))
    host["vm"].process.end(signal.SIGSEGV)
"""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from itertools import count

import attrs
import trio

from qmpkit._trio import service_nursery
from qmpkit.host.resolve import Resolution
from qmpkit.machine.launch import LaunchOptions, Started
from qmpkit.process.status import ExitStatus
from qmpkit.spec.machine import channels
from qmpkit.testing.fake import FakeQemu

__all__ = ["FakeHost", "FakeMachine", "FakeProcess"]

_pids = count(10_000_000)  # above every number that the kernel gives


class FakeProcess:
    """The process of a fake QEMU: it obeys SIGTERM and dies of SIGKILL, unless told otherwise.

    `signals` is what it was sent; `ignores` are the signals that do nothing to it.
    """

    def __init__(self, qemu: FakeQemu) -> None:
        self.pid = next(_pids)
        self.signals: list[signal.Signals] = []
        self.ignores: set[signal.Signals] = set()
        self.stderr_tail = ""
        self._qemu = qemu
        self._status: ExitStatus | None = None

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; None while it lives."""
        if self._status is None and self._qemu.ended.is_set():
            code = self._qemu.exit_code
            self._status = ExitStatus(code=code, signal=signal.SIGABRT if code is None else None)
        return self._status

    async def wait(self) -> ExitStatus:
        """Wait for its end."""
        await self._qemu.ended.wait()
        assert self.status is not None
        return self.status

    def terminate(self) -> None:
        """SIGTERM: QEMU says why, and ends with status 0."""
        if self._strikes(signal.SIGTERM):
            self._qemu.emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})
            self.end(0)

    def kill(self) -> None:
        """SIGKILL."""
        if self._strikes(signal.SIGKILL):
            self.end(signal.SIGKILL)

    def end(self, how: int | signal.Signals, *, hang_up: bool = True) -> None:
        """End with an exit status, or by a signal; without *hang_up* its monitor stays open."""
        if self.status is None:
            by_signal = isinstance(how, signal.Signals)
            self._status = ExitStatus(signal=int(how)) if by_signal else ExitStatus(code=how)
            if hang_up:
                self._qemu.hang_up()
            self._qemu.ended.set()

    def _strikes(self, number: signal.Signals) -> bool:
        if self.status is not None:
            return False
        self.signals.append(number)
        return number not in self.ignores


@attrs.frozen
class FakeMachine:
    """One fake that was started: its monitor, its process, and its ends of the other channels."""

    qemu: FakeQemu
    process: FakeProcess
    channels: Mapping[str, socket.socket]


class FakeHost:
    """Starts fakes; `start` goes where a `Starter` is wanted.

    *prepare* is called with each new fake before it greets.  `host["web"]` is the
    latest one of that name, `alive` the names of those whose block is still entered.
    """

    def __init__(self, prepare: Callable[[FakeMachine], object] = lambda machine: None) -> None:
        self.prepare = prepare
        self.alive: list[str] = []
        self._machines: dict[str, FakeMachine] = {}

    def __getitem__(self, name: str) -> FakeMachine:
        return self._machines[name]

    @asynccontextmanager
    async def start(self, resolution: Resolution, options: LaunchOptions) -> AsyncIterator[Started]:
        """A started fake; leaving the block kills it, as `child` does."""
        name = resolution.spec.name
        # Like a process of its own, it lives on while its user is being cancelled.
        async with service_nursery() as services:
            with ExitStack() as stack:
                qemu = FakeQemu(services)
                stack.callback(qemu.close_fds)
                ours, theirs = _wire(stack, channels(resolution.spec)[1:])
                machine = FakeMachine(qemu, FakeProcess(qemu), theirs)
                self._machines[name] = machine
                self.prepare(machine)
                ours["qmp"] = stack.enter_context(_monitor(machine))
                services.start_soon(_close_at_end, machine)
                self.alive.append(name)
                try:
                    await trio.lowlevel.checkpoint()
                    yield Started(machine.process, ("fake-qemu", "-name", name), ours)
                finally:
                    self.alive.remove(name)
                    machine.process.end(signal.SIGKILL)


def _monitor(machine: FakeMachine) -> socket.socket:
    """Our end of the monitor; of one that is dead already, a closed one."""
    if machine.process.status is None:
        ours: socket.socket = machine.qemu.dial("socket")
    else:
        ours, theirs = socket.socketpair()
        theirs.close()
    ours.setblocking(False)
    return ours


async def _close_at_end(machine: FakeMachine) -> None:
    """Every channel ends with the process, as the kernel sees to it."""
    await machine.qemu.ended.wait()
    for channel in machine.channels.values():
        channel.close()


def _wire(
    stack: ExitStack, names: tuple[str, ...]
) -> tuple[dict[str, socket.socket], dict[str, socket.socket]]:
    ours, theirs = {}, {}
    for name in names:
        mine, its = socket.socketpair()
        ours[name], theirs[name] = stack.enter_context(mine), stack.enter_context(its)
        mine.setblocking(False)
    return ours, theirs
