"""Ctrl-C for commands that are not a machine's: the work is undone, then it is said."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

__all__ = ["Work", "interruptible"]


@attrs.define
class Work:
    """`done` is for the block to set: what was asked for is there, and stays."""

    done: bool = False


@asynccontextmanager
async def interruptible() -> AsyncIterator[Work]:
    """Ctrl-C and SIGTERM cancel the block; KeyboardInterrupt follows its cleanup.

    Python's own would be raised in the middle of whatever runs, the cleanup included.
    Nothing follows once the block's work is `done`: an interruption would be a lie.
    """
    work = Work()
    numbers = signal.SIGINT, signal.SIGTERM
    with trio.open_signal_receiver(*numbers) as signals, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at, signals, scope)
            yield work
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught and not work.done:
        raise KeyboardInterrupt


async def _cancel_at(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
