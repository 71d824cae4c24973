"""Ctrl-C for commands that are not a machine's: the work is undone, then it is said."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["interruptible"]


@asynccontextmanager
async def interruptible() -> AsyncIterator[None]:
    """Ctrl-C and SIGTERM cancel the block; KeyboardInterrupt follows its cleanup.

    Python's own would be raised in the middle of whatever runs, the cleanup included.
    """
    numbers = signal.SIGINT, signal.SIGTERM
    with trio.open_signal_receiver(*numbers) as signals, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at, signals, scope)
            yield
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        raise KeyboardInterrupt


async def _cancel_at(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
