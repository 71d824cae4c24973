"""The progress of work on an image, shown while it is under way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from qmpkit import images
from qmpkit._trio import raise_collapsed
from qmpkit.cli.progress import show_progress

__all__ = ["shown_progress"]


@asynccontextmanager
async def shown_progress(what: str) -> AsyncIterator[images.Progress]:
    """A progress that is shown under the words *what* while the block works."""
    progress = images.Progress()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show_progress, what, progress)
            yield progress
    except BaseExceptionGroup as group:
        raise_collapsed(group)
