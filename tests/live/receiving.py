"""What the tests of moves between two supervisors share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
import trio.testing

from qmpkit import Supervisor
from qmpkit.operations.migration.wire import Wire, WireLost
from qmpkit.supervisor.kept import Kept
from tests.live.blocks import write
from tests.live.kept import Places, count

__all__ = ["Cut", "Serve", "door", "end_both", "one_left", "other", "runs_on", "told"]

Serve = Callable[[trio.abc.Stream], Awaitable[object]]


@asynccontextmanager
async def other() -> AsyncIterator[Supervisor]:
    async with Supervisor("other", keep=True) as supervisor:
        yield supervisor


@asynccontextmanager
async def door(path: Path, serve: Serve) -> AsyncIterator[str]:
    """A unix socket at which *serve* answers; where it is, as `migrate` takes it."""
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(5)

    async def served(stream: trio.SocketStream) -> None:
        await serve(stream)

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, served, [trio.SocketListener(sock)])
        yield f"unix:{path}"
        nursery.cancel_scope.cancel()
    await trio.Path(path).unlink()


async def runs_on(kept: Kept, had: int) -> int:
    """Its guest runs on from where it was, and has its disks; how far it is."""
    await kept.wait_running()
    assert kept.vm is not None
    now = await count(kept)
    assert now >= had
    await kept.vm.console.reader().expect(".")
    await write(kept.vm, "disk0", 1, 6)
    return now


async def one_left(places: Places, here: Supervisor, there: Supervisor) -> Supervisor:
    """Wait until one of the two has the machine: who does not may hear of it a moment later."""
    with trio.fail_after(20):
        while len(here.kept) + len(there.kept) != 1 or len(places.qemus()) != 1:  # noqa: ASYNC110
            await trio.sleep(0.02)
    return here if here.kept else there


async def told(supervisor: Supervisor, machine: str) -> list[str]:
    """What the event log says of a machine: one word each."""
    words = []
    with supervisor.subscribe(since=-1) as happenings:
        while (happening := await happenings.past()) is not None:
            if happening.machine == machine:
                words.append(happening.state)
    return words


async def end_both() -> None:
    for name in ("lab", "other"):
        async with Supervisor(name, keep=True) as supervisor:
            for machine in list(supervisor.kept):
                await supervisor.declare(machine, "stopped")
                await supervisor.forget(machine)


class Cut:
    """A cable to *serve* that breaks at one *ask*: before it is there, or before its answer is.

    `is_deaf`: nobody is heard from then on.
    """

    def __init__(self, serve: Serve, ask: str, *, passes: bool, deaf: bool = False) -> None:
        self.has_cut = False
        self.is_deaf = False
        self._serve = serve
        self._ask = ask
        self._passes = passes
        self._deaf = deaf

    async def __call__(self, stream: trio.abc.Stream) -> None:
        if self.is_deaf:
            await stream.aclose()
            return
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, theirs)
            with suppress(WireLost):
                await self._carry(Wire(stream), Wire(ours))
            await trio.aclose_forcefully(ours)
            await trio.aclose_forcefully(stream)

    async def _carry(self, peer: Wire, daemon: Wire) -> None:
        while True:
            asked = await peer.receive()
            is_here = asked.get("ask") == self._ask and not self.has_cut
            if not is_here or self._passes:
                await daemon.send(asked)
                answer = await daemon.receive()
            if is_here:
                self.has_cut, self.is_deaf = True, self._deaf
                return
            await peer.send(answer)
