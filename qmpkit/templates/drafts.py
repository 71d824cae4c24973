"""The hidden folder beside a template's place, in which it is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from qmpkit.images.hidden import hidden_beside
from qmpkit.images.tool import Asked

__all__ = ["hidden_folder"]

_GRACE = 30.0  # for gigabytes on a slow disk


@asynccontextmanager
async def hidden_folder(asked: Asked) -> AsyncIterator[Path]:
    """A new folder (0700) beside the path of *asked*; gone after the block, if not renamed.

    One that a killed program has left goes when the next one is made there.
    """
    limiter = trio.CapacityLimiter(1)  # threads stuck in a slow disk must not hold this up
    held = await trio.to_thread.run_sync(hidden_beside, asked, "template", limiter=limiter)
    try:
        yield held.path
    finally:
        with trio.move_on_after(_GRACE, shield=True):
            await trio.to_thread.run_sync(held.remove, limiter=limiter, abandon_on_cancel=True)
