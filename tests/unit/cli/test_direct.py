"""A guest reached by its machine's own sockets: whoever holds them, and what is refused."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qmpkit.cli.direct import ChannelHeld, console_of, run_in
from qmpkit.errors import QmpkitError, SpecInvalid
from qmpkit.machine.keep import Home, WrongMachine
from qmpkit.process.identity import Standing
from qmpkit.process.sockets import listening_socket
from qmpkit.qmp.connect import connect
from qmpkit.spec.argv import TOOLS
from qmpkit.supervisor.onlooker import Seen
from qmpkit.testing.fake import FakeQemu
from tests.unit.operations.guest import Guest
from tests.unit.supervisor.test_journal import record

UUID = "12345678-0000-0000-0000-000000000000"


@pytest.fixture
def home() -> Iterator[Home]:
    folder = tempfile.mkdtemp(prefix="qk-")
    yield Home(Path(folder), Path(folder))
    shutil.rmtree(folder)


class Machine:
    """A fake machine at its sockets, each of which serves one client at a time."""

    def __init__(self, home: Home, nursery: trio.Nursery) -> None:
        spec = attrs.evolve(record("web").spec, agent=True, serials=1)
        self.seen = Seen(record("web", spec=spec, phase="up"), home, Standing.ALIVE)
        self.qemu = FakeQemu(nursery)
        self.qemu.uuid, self.qemu.status = UUID, "running"
        self.held: set[str] = set()
        self.qemu.on("query-chardev", lambda _: [self._chardev(it) for it in ("agent", "serial0")])
        self.agent = FakeQemu(nursery, kind="agent")
        Guest(self.agent)

    def _chardev(self, channel: str) -> dict[str, Any]:
        filename = f"{'' if channel in self.held else 'disconnected:'}unix:/x,server=on"
        return {"label": f"qk-{channel}", "filename": filename, "frontend-open": True}


async def _echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(b"<" + data + b">")


@asynccontextmanager
async def machine(home: Home) -> AsyncIterator[Machine]:
    async with trio.open_nursery() as nursery:
        it = Machine(home, nursery)
        served: dict[str, Callable[..., Any]] = {
            TOOLS: it.qemu.serve,
            "qmp": it.qemu.serve,
            "agent": it.agent.serve,
            "serial0": _echo,
        }
        for channel, serve in served.items():
            listener = listening_socket(home.socket(channel))
            listener.setblocking(False)
            nursery.start_soon(_serve, trio.socket.from_stdlib_socket(listener), serve)
        yield it
        nursery.cancel_scope.cancel()


async def _serve(listener: trio.socket.SocketType, serve: Callable[..., Any]) -> None:
    with listener:
        while True:
            client, _ = await listener.accept()
            await serve(trio.SocketStream(client))


async def test_a_program_and_another_one(home: Home) -> None:
    async with machine(home) as it:
        assert (await run_in(it.seen, ["cat"], b"one")).stdout == b"one"
        assert (await run_in(it.seen, ["fail"], b"")).status == 3


async def test_who_comes_meanwhile_is_served_afterwards(home: Home) -> None:
    async with machine(home) as it:
        async with console_of(it.seen, "serial0") as console:
            await console.send_all(b"a")
            assert await console.receive_some() == b"<a>"
            daemon = await trio.open_unix_socket(home.socket("serial0"))
            await daemon.send_all(b"b")
            async with connect(home.socket(TOOLS)) as monitor:  # it is not held by a console
                await monitor.execute("query-status")
        async with daemon:
            assert await daemon.receive_some() == b"<b>"


@pytest.mark.parametrize("channel", ["agent", "serial0"])
async def test_one_that_somebody_else_uses(home: Home, channel: str) -> None:
    async with machine(home) as it:
        it.held.add(channel)
        with pytest.raises(ChannelHeld, match=f"uses {channel} of machine 'web'"):
            if channel == "agent":
                await run_in(it.seen, ["cat"], b"")
            async with console_of(it.seen, channel):
                pass


async def test_a_guest_that_stands_still(home: Home) -> None:
    async with machine(home) as it:
        it.qemu.status = "paused"
        with pytest.raises(QmpkitError, match="'web' would not answer: it is paused"):
            await run_in(it.seen, ["cat"], b"")
        async with console_of(it.seen, "serial0"):
            pass  # what it said is of interest all the same


async def test_another_machine_is_left_alone(home: Home) -> None:
    async with machine(home) as it:
        it.qemu.uuid = UUID.replace("1", "2")
        with pytest.raises(WrongMachine):
            await run_in(it.seen, ["cat"], b"")


async def test_without_an_agent_or_a_socket(home: Home) -> None:
    async with machine(home) as it:
        home.socket("serial0").unlink()
        with pytest.raises(QmpkitError, match="serial0 of machine 'web' cannot be reached"):
            async with console_of(it.seen, "serial0"):
                pass
        spec = attrs.evolve(it.seen.record.spec, agent=False)
        without = attrs.evolve(it.seen, record=attrs.evolve(it.seen.record, spec=spec))
        with pytest.raises(SpecInvalid, match="no guest agent channel"):
            await run_in(without, ["cat"], b"")
