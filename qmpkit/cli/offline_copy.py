"""Copying into a guest and out of it while no daemon runs: by its agent's own socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from qmpkit.cli.direct import agent_of
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.offline import living_machine

__all__ = ["get", "put"]


def put(farm: str, word: str, path: str, parts: Iterator[bytes]) -> None:
    """Write *parts* into a file of the guest.  Blocking."""
    seen = living_machine(farm, word)

    async def run() -> None:
        async with interruptible() as work, agent_of(seen) as agent:
            async with agent.writing(path) as file:
                while part := await _next(parts):
                    await file.write(part)
            work.done = True

    trio.run(run)


async def _next(parts: Iterator[bytes]) -> bytes:
    """Cancelled it returns at once, and its thread ends with the process: a pipe may be silent."""
    return await trio.to_thread.run_sync(next, parts, b"", abandon_on_cancel=True)


def get(farm: str, word: str, path: str, take: Callable[[bytes, int | None], None]) -> None:
    """Give the parts of a file of the guest to *take*, each with the file's size.  Blocking."""
    seen = living_machine(farm, word)

    async def run() -> None:
        async with interruptible() as work, agent_of(seen) as agent:
            async with agent.reading(path) as file:
                size = await file.size()
                while part := await file.read():
                    await trio.to_thread.run_sync(take, part, size)
            work.done = True

    trio.run(run)
