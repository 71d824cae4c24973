"""A guest that another supervisor has, or has not, and whose memory is in part still here."""

from __future__ import annotations

import logging
import time
from functools import partial

import trio

from qmpkit.errors import QmpkitError
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.place import MovePlace
from qmpkit.operations.migration.postcopy import Postcopy
from qmpkit.operations.migration.remote_rest import RemoteRest
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.process.identity import boot_id
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.record import End, Leaving

__all__ = ["brought", "note_loss"]

log = logging.getLogger("qmpkit.supervisor")


async def brought(kept: Kept, leaving: Leaving, place: MovePlace, machine: Machine) -> str:
    """Have the rest of its memory come to *place*, whose supervisor runs it, if it has not yet.

    What has come of the move by its word: "" when nobody can tell, else as
    `RemoteRest.give_up`.  MachineGone and the like are no reason to raise: what is lost is told.
    """
    rest = RemoteRest(place, kept.name, leaving.id, leaving.who)
    again = partial(rest.laid_again, MigrationOptions(), None, machine)
    kept.enter("migrating", f"the rest of its memory is to come to {leaving.place}")
    try:
        await Postcopy(machine, rest, again, recover_within=rest.within).bring(_nothing)
    except* QmpkitError as errors:
        log.warning("machine %r: %s", kept.name, errors.exceptions[0])
    if rest.outcome not in _KNOWN:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await rest.give_up()
    return rest.outcome


_KNOWN = ("runs", "ran", "lost", "discarded")


def _nothing() -> None:
    """It was the source's no more before."""


async def note_loss(kept: Kept, means: Means, machine: Machine, why: str) -> None:
    """For its policy, which starts it again as after a power cut; it is not leaving any more."""
    kept.tell("lost", why)
    uptime = trio.current_time() - machine.started_at
    end = End(Mishap.LOST, why, uptime, time.time(), boot_id())
    kept.note(phase="ending", end=end, leaving=None)
    with trio.move_on_after(STEP_GRACE, shield=True):
        await kept.write(means.journal)
