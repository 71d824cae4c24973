"""What the tests of moves between two supervisors share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from qmpkit import Supervisor
from qmpkit.supervisor.kept import Kept
from tests.live.blocks import write
from tests.live.kept import count
from tests.live.migrating import went_on

__all__ = ["Serve", "door", "end_both", "other", "runs_on", "told"]

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
    assert went_on(had, now)
    await kept.vm.console.reader().expect(".")
    await write(kept.vm, "disk0", 1, 6)
    return now


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
