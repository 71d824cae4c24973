"""A guest that stands still for its RAM to be written, and goes on as it was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from qmpkit.machine.saved_state import finalized, save_state
from qmpkit.machine.state_forms import Form
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.jobs import JobState, Progress, progress_of

__all__ = ["go_on", "runs", "write_memory"]


async def runs(machine: Changeable) -> bool:
    """Whether the guest's processors run."""
    return not machine.is_down and bool((await machine.execute("query-status"))["running"])


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

    why = machine.maimed or await save_state(machine, file, flags=os.O_WRONLY, form=form, told=told)
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
