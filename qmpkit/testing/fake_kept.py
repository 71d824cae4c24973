"""Kept machines whose QEMU is a `FakeQemu`, that outlive their supervisor in a test's block.

async with fake_ground() as ground:
    async with Supervisor("lab", keep=True, ground=ground) as lab: ...
    ground["web"].qemu.guest_shutdown()
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import trio

from qmpkit.host.resolve import Resolution
from qmpkit.machine.keep import First, Home, KeptStart
from qmpkit.process.errors import ProcessVanished
from qmpkit.process.identity import Identity, Standing, boot_id
from qmpkit.process.kept import KeptLike
from qmpkit.process.places import fresh
from qmpkit.process.sockets import listening_socket
from qmpkit.spec.argv import TOOLS
from qmpkit.spec.machine import channels
from qmpkit.testing.fake import FakeQemu
from qmpkit.testing.fake_machine import FakeProcess

__all__ = ["FakeGround", "FakeKept", "fake_ground"]

_starts = itertools.count(1)


class FakeKept(FakeProcess):
    """One fake process of the machine *name*: its monitor is `qemu`.

    `standing` is what an adoption finds of a dead one.
    """

    def __init__(self, qemu: FakeQemu, name: str) -> None:
        super().__init__(qemu)
        self.name = name
        self.qemu = qemu
        self.identity = Identity(boot_id(), self.pid, next(_starts))
        self.kept = False
        self.standing = Standing.GONE

    async def keep(self) -> bool:
        """Let it outlive its supervisor."""
        await trio.lowlevel.checkpoint()
        self.kept = self.status is None
        return self.kept


class FakeGround:
    """Starts and finds fakes; `ground["web"]` is the latest one of that name.

    *prepare* is called with each new fake before it greets; what it raises is a start
    that fails.
    """

    def __init__(
        self, nursery: trio.Nursery, prepare: Callable[[FakeKept], object] = lambda fake: None
    ) -> None:
        self.prepare = prepare
        self.started: list[FakeKept] = []
        self._nursery = nursery
        self._machines: dict[str, FakeKept] = {}

    def __getitem__(self, name: str) -> FakeKept:
        return self._machines[name]

    @property
    def alive(self) -> list[FakeKept]:
        """Those that have not ended."""
        return [fake for fake in self.started if fake.status is None]

    @asynccontextmanager
    async def start(
        self,
        resolution: Resolution,
        home: Home,
        links: Mapping[str, int],
        first: First,
        *,
        incoming: bool = False,
        silent: Collection[str] = (),
    ) -> AsyncIterator[KeptStart]:
        """A started fake; leaving the block kills it unless it is kept by then."""
        spec = resolution.spec
        await first()
        qemu = FakeQemu(self._nursery)
        qemu.pauses_on_shutdown = True
        qemu.uuid = spec.uuid or ""
        fake = FakeKept(qemu, spec.name)
        self.prepare(fake)
        fresh(home.sockets)
        await self._nursery.start(_serve, fake, home, (*channels(spec), TOOLS))
        self._machines[spec.name] = fake
        self.started.append(fake)
        try:
            await trio.lowlevel.checkpoint()
            yield KeptStart(fake, ("fake-qemu", "-name", spec.name))
        finally:
            if not fake.kept:
                fake.end(signal.SIGKILL)

    @asynccontextmanager
    async def adopt(self, identity: Identity, home: Home) -> AsyncIterator[KeptLike]:
        """The fake that *identity* means."""
        await trio.lowlevel.checkpoint()
        if identity.boot != boot_id():
            raise ProcessVanished(identity.pid, Standing.REBOOTED)
        for fake in self.started:
            if fake.identity == identity:
                if fake.status is not None:
                    raise ProcessVanished(identity.pid, fake.standing)
                yield fake
                return
        raise ProcessVanished(identity.pid, Standing.REUSED)


async def _serve(
    fake: FakeKept, home: Home, names: tuple[str, ...], task_status: trio.TaskStatus[None]
) -> None:
    """The fake's end of every channel, until it has ended."""
    async with trio.open_nursery() as nursery:
        with ExitStack() as stack:
            for name in names:
                listener = stack.enter_context(listening_socket(home.socket(name)))
                listener.setblocking(False)
                stack.callback(_remove, home.socket(name))
                monitor = fake.qemu.serve if name in ("qmp", TOOLS) else _mute
                nursery.start_soon(
                    _accept, trio.socket.from_stdlib_socket(listener), monitor, nursery
                )
            task_status.started()
            await fake.qemu.ended.wait()
            nursery.cancel_scope.cancel()


async def _accept(
    listener: trio.socket.SocketType, serve: Callable[..., object], nursery: trio.Nursery
) -> None:
    while True:
        client, _ = await listener.accept()
        nursery.start_soon(serve, trio.SocketStream(client))  # type: ignore[arg-type]


async def _mute(stream: trio.SocketStream) -> None:
    """A channel whose guest says nothing."""
    async with stream:
        while await stream.receive_some():
            pass


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


@asynccontextmanager
async def fake_ground() -> AsyncIterator[FakeGround]:
    """A `FakeGround` whose machines live until the block is left."""
    async with trio.open_nursery() as nursery:
        ground = FakeGround(nursery)
        try:
            yield ground
        finally:
            for fake in ground.started:
                fake.end(signal.SIGKILL)
                fake.qemu.close_fds()
            nursery.cancel_scope.cancel()
