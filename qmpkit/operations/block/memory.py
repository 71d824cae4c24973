"""The guest's RAM in a file of its own, as it is at the moment of an external snapshot."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from qmpkit.errors import ImageFailed
from qmpkit.images.drafts import Placed
from qmpkit.machine.saved_state import cancel_saving, save_state, take_images_back
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.layers import STEP_GRACE
from qmpkit.operations.block.undertaking import Undertaking
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.jobs import JobState, Progress, progress_of

__all__ = ["go_on", "place_memory", "runs", "standing_still"]


async def runs(machine: Changeable) -> bool:
    """Whether the guest's processors run."""
    return bool((await machine.execute("query-status"))["running"])


async def place_memory(path: str) -> Placed:
    """An empty file, its user's alone, for the RAM.  ImageFailed when it cannot be made."""
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
    """The guest stands still within, and its RAM is in the file of the change.

    It goes on afterwards, if it ran, however the block ends.  Raises JobFailed when its
    state cannot be written.
    """
    begun = trio.current_time()
    try:
        if it.change.halted:
            await machine.execute("stop")
        await _save(machine, it, progress)
        it.paused_for(trio.current_time() - begun)
        yield
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await go_on(machine, ran=it.change.halted)


async def _save(machine: Changeable, it: Undertaking, progress: Progress | None) -> None:
    begun: tuple[float, int] | None = None

    def told(migration: Mapping[str, Any]) -> None:
        nonlocal begun
        state, now = _state(migration), trio.current_time()
        begun = begun or (now, state.done)
        if progress is not None:
            progress(progress_of(state, *begun, now))

    why = await save_state(machine, Path(it.change.memory), flags=os.O_WRONLY, told=told)
    if why:
        raise JobFailed(machine.name, "migrate", it.change.what, why)


def _state(migration: Mapping[str, Any]) -> JobState:
    ram = migration.get("ram", {})
    total, left = ram.get("total", 0), ram.get("remaining", 0)
    status = str(migration.get("status", "none"))
    return JobState("migrate", "migrate", status, total - left, total)


async def go_on(machine: Changeable, *, ran: bool) -> None:
    """Have the guest as it was before its state was saved; QEMU has let go of the images."""
    await cancel_saving(machine)
    if ran:
        await machine.execute("cont")
        return
    status = (await machine.execute("query-status"))["status"]
    if status == "postmigrate" and not await take_images_back(machine):
        # There is no other way to have them back; it runs for a millisecond.
        await machine.execute("cont")
        await machine.execute("stop")
