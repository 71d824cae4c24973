"""A migration that is under way while somebody looks on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from qmpkit._trio import raise_collapsed
from qmpkit.operations.migration.convergence import Round
from qmpkit.operations.migration.moving import Migrated
from qmpkit.operations.migration.transfer import Told

__all__ = ["Migration", "followed"]

_LOOKS = 100
"""Those that wait for a slow reader; later ones are not told of then."""


class Migration:
    """One that is under way: `async for now in migration`, until it is over.

    `took` is what it took, once the block of `VM.migrating` has been left.
    """

    def __init__(self, looks: trio.MemoryReceiveChannel[Round]) -> None:
        self.took: Migrated | None = None
        self._looks = looks

    def __aiter__(self) -> Migration:
        return self

    async def __anext__(self) -> Round:
        try:
            return await self._looks.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


@asynccontextmanager
async def followed(migrate: Callable[[Told], Awaitable[Migrated]]) -> AsyncIterator[Migration]:
    """Have *migrate* done within the block, whose end waits for it; see `VM.migrating`."""
    telling, looks = trio.open_memory_channel[Round](_LOOKS)
    migration = Migration(looks)

    def told(now: Round) -> None:
        if telling.statistics().current_buffer_used < _LOOKS:
            telling.send_nowait(now)

    async def run() -> None:
        with telling:
            migration.took = await migrate(told)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield migration
    except BaseExceptionGroup as group:
        raise_collapsed(group)
