"""The hidden folder beside a template's place, in which it is put together."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from qmpkit.images.tool import Asked
from qmpkit.process.held_dirs import HeldDir, hold_new_dir, sweep

__all__ = ["hidden_folder"]

_GRACE = 30.0  # for gigabytes on a slow disk
_HIDDEN = re.compile(r"\.qk-[0-9a-f]{12}\.template")


@asynccontextmanager
async def hidden_folder(asked: Asked) -> AsyncIterator[Path]:
    """A new folder (0700) beside the path of *asked*; gone after the block, if not renamed.

    One that a killed program has left goes when the next one is made there.
    """
    limiter = trio.CapacityLimiter(1)  # threads stuck in a slow disk must not hold this up
    try:
        held = await trio.to_thread.run_sync(_made, asked.path.parent, limiter=limiter)
    except OSError as error:
        raise asked.failed_by(error) from error
    try:
        yield held.path
    finally:
        with trio.move_on_after(_GRACE, shield=True):
            await trio.to_thread.run_sync(held.remove, limiter=limiter, abandon_on_cancel=True)


def _made(parent: Path) -> HeldDir:
    with suppress(OSError):  # a folder that may be written, but not read
        sweep(parent, _HIDDEN)
    return hold_new_dir(parent, lambda: f".qk-{secrets.token_hex(6)}.template")
