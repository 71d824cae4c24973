"""A guest whose memory was following it here when its supervisor died: we go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import trio

from qmpkit.errors import QmpkitError
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.parameters import TLS_ID
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.process.errors import ProcessVanished
from qmpkit.process.places import discard
from qmpkit.qmp.errors import CommandRefused, MonitorSilent
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.moves.departures import remove_own
from qmpkit.supervisor.moves.heirs import reached
from qmpkit.supervisor.moves.rest_here import RestHere

__all__ = ["settle_rest"]

log = logging.getLogger("qmpkit.supervisor")

_SILENT = 60.0
"""Seconds that a QEMU is given which waits for memory itself, and says nothing meanwhile."""


async def settle_rest(kept: Kept, means: Means, seen: Callable[[], None]) -> None:
    """Have the rest of its memory come; `Kept.has_left` when its source has never had it run.

    *seen* is called before what may take long.
    """
    record, remainder = kept.record, kept.record.rest
    if remainder is None:
        return
    ident = record.arriving or record.arrived
    log.warning("machine %r was moving here, and its memory is to follow", kept.name)
    async with AsyncExitStack() as stack:
        machine = await _reached(stack, kept, means, seen)
        if machine is not None:
            rest = RestHere(kept, machine, means, ident, remainder)
            seen()
            await rest.followed(None)
            with suppress(CommandRefused, *LOST):
                await machine.execute("object-del", {"id": TLS_ID})
    if kept.record.arriving:
        await _discarded(kept, means)
    elif kept.record.rest is not None:  # its QEMU has ended meanwhile
        with suppress(QmpkitError):
            await means.arrivals.put(ident, "lost")
        kept.note(rest=None)
        await kept.write(means.journal)


async def _reached(
    stack: AsyncExitStack, kept: Kept, means: Means, seen: Callable[[], None]
) -> Machine | None:
    """Its QEMU; one that says nothing waits for what does not come, and ends when that is long."""
    until = trio.current_time() + _SILENT
    while trio.current_time() < until:  # what is entered outlives any scope of ours
        try:
            return await reached(stack, kept, means, kept.record, kept.home)
        except MonitorSilent as silent:
            kept.enter("silent", str(silent))
            seen()
    assert kept.record.identity is not None, "else it could not be silent"
    with suppress(ProcessVanished):
        async with means.ground.adopt(kept.record.identity, kept.home) as child:
            child.kill()
            await child.wait()
    return None


async def _discarded(kept: Kept, means: Means) -> None:
    """Nothing is left of it here."""
    kept.has_left = True
    kept.tell("discarded", "its supervisor died while it was moving here: it is where it came from")
    with trio.move_on_after(STEP_GRACE, shield=True):
        change = kept.record.change
        if change is not None:  # the images of disks that were to come along
            await trio.to_thread.run_sync(remove_own, change)
        await means.forget(kept)
        for folder in (kept.home.sockets, kept.home.logs):
            await trio.to_thread.run_sync(discard, folder)
