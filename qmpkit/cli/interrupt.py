"""Ctrl-C for commands that are not a machine's: the work is undone, then it is said.

So it is for what else stops a command.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from qmpkit.cli.signals import stop_signals

__all__ = ["Work", "interruptible"]


@attrs.define
class Work:
    """`done` is for the block to set: what was asked for is there, and stays."""

    done: bool = False


@asynccontextmanager
async def interruptible() -> AsyncIterator[Work]:
    """Ctrl-C and the like cancel the block; KeyboardInterrupt follows its cleanup.

    Python's own would be raised in the middle of whatever runs, the cleanup included.
    Nothing follows once the block's work is `done`: an interruption would be a lie.
    """
    work = Work()
    with trio.open_signal_receiver(*stop_signals()) as signals, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at, signals, scope)
            yield work
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught and not work.done:
        raise KeyboardInterrupt


async def _cancel_at(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
