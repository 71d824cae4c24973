"""What an external snapshot has beside its layers, for which the guest stands still: its RAM."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from qmpkit.errors import ImageFailed
from qmpkit.images.drafts import Placed
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.variables import copy_variables
from qmpkit.operations.jobs import Progress
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.stillness import go_on, write_memory
from qmpkit.operations.undertaking import Undertaking

__all__ = ["place_file", "standing_still"]


async def place_file(path: str) -> Placed:
    """An empty file, its user's alone, to be filled.  ImageFailed when it cannot be made."""
    try:
        return await trio.to_thread.run_sync(_made, Path(path))
    except OSError as error:
        raise ImageFailed(path, "make", error.strerror or str(error)) from error


def _made(path: Path) -> Placed:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return Placed.of(path)


@asynccontextmanager
async def standing_still(
    machine: Changeable, it: Undertaking, progress: Progress | None
) -> AsyncIterator[None]:
    """The guest stands still within, its RAM and UEFI variables in the files of the change.

    It goes on afterwards, if it ran, however the block ends.  Raises JobFailed when its
    state cannot be written.
    """
    begun = trio.current_time()
    try:
        if it.change.halted:
            await machine.execute("stop")
        if it.change.memory:
            await write_memory(machine, Path(it.change.memory), it.change.what, progress)
        if it.change.variables:
            await copy_variables(it.change.begun, it.change.variables)
        if it.change.halted:
            it.paused_for(trio.current_time() - begun)
        yield
    finally:
        if not machine.is_down:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await go_on(machine, ran=it.change.halted)
