"""What an external snapshot has beside its layers, for which the guest stands still: its RAM."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from qmpkit.errors import ImageFailed
from qmpkit.images.drafts import Placed
from qmpkit.machine.saved_state import finalized, save_state
from qmpkit.machine.state_forms import Form
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.variables import copy_variables
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.jobs import JobState, Progress, progress_of
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.undertaking import Undertaking

__all__ = ["go_on", "place_file", "runs", "standing_still", "write_memory"]


async def runs(machine: Changeable) -> bool:
    """Whether the guest's processors run."""
    return not machine.is_down and bool((await machine.execute("query-status"))["running"])


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


async def write_memory(
    machine: Changeable,
    file: Path,
    asked: str,
    progress: Progress | None = None,
    *,
    form: Form = "plain",
) -> None:
    """Write the RAM of a guest that stands still into *file*, which is there.

    JobFailed when that cannot be; *asked*: what it is for.
    """
    begun: tuple[float, int] | None = None

    def told(migration: Mapping[str, Any]) -> None:
        nonlocal begun
        state, now = _state(migration), trio.current_time()
        begun = begun or (now, state.done)
        if progress is not None:
            progress(progress_of(state, *begun, now))

    why = await save_state(machine, file, flags=os.O_WRONLY, form=form, told=told)
    if why:
        raise JobFailed(machine.name, "migrate", asked, why)


def _state(migration: Mapping[str, Any]) -> JobState:
    ram = migration.get("ram", {})
    total, left = ram.get("total", 0), ram.get("remaining", 0)
    status = str(migration.get("status", "none"))
    return JobState("migrate", "migrate", status, total - left, total)


async def go_on(machine: Changeable, *, ran: bool) -> None:
    """Have the guest as it was before its state was saved; QEMU has let go of the images."""
    status = await finalized(machine)
    if ran:
        await machine.execute("cont")
    elif status == "postmigrate":
        # Nothing else gets it out of that, in which it can be saved no second time.
        await machine.execute("cont")
        await machine.execute("stop")
