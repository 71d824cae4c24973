"""A machine that nobody keeps moves to a supervisor, which keeps it from then on.

Its QEMU ends with its program, so there is nothing to write down here.  When the program dies
before the other side was told to run the guest, the other side hears no more, and discards
what it has: the guest ends as it would have without a move.  From that word on it is the other
side's, which has it on record before it lets it run.  Never do two of them run.
"""

from __future__ import annotations

import logging
import secrets

import trio

from qmpkit.errors import Fault
from qmpkit.machine.machine import Machine
from qmpkit.machine.state import State
from qmpkit.operations.migration.convergence import Policy, policy_of
from qmpkit.operations.migration.errors import CannotMigrate, MigrationFailed, MigrationUnknown
from qmpkit.operations.migration.migrate import migrate_held
from qmpkit.operations.migration.moving import Migrated
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.place import MovePlace, move_place
from qmpkit.operations.migration.remote_end import RemoteEnd
from qmpkit.operations.migration.storage import SHARED, DiskPlaces
from qmpkit.operations.migration.transfer import Told
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.spec.restart import Restart, to_restart
from qmpkit.supervisor.moves.departures import (
    Source,
    Whereabouts,
    ended,
    outcome_at,
    taken_back,
    where,
)
from qmpkit.supervisor.moves.recorded_disks import mirrors_on_record
from qmpkit.supervisor.moves.sending import offered
from qmpkit.supervisor.record import Record
from qmpkit.vm import VM

__all__ = ["hand_over"]

log = logging.getLogger("qmpkit.supervisor")


async def hand_over(
    vm: VM,
    to: str | MovePlace,
    *,
    restart: str | Restart = "on-failure",
    disks: DiskPlaces = SHARED,
    collapse: bool = False,
    policy: str | Policy = "live",
    options: MigrationOptions | None = None,
    progress: Told | None = None,
) -> Migrated:
    """Move the guest of a machine of `running` to a supervisor, which keeps it; this QEMU ends.

    *to*: a farm of this host whose daemon runs, "unix:PATH", or `move_place("tls://…", tls)` of
    another host, where `qmpkit receive` waits.  *restart*: the policy that it has there.
    *disks*, *collapse*: as for `Supervisor.migrate`; *policy*, *options*, *progress*: as for
    `VM.migrate`.  The machine needs a `uuid`, by which it is known there.

    All or nothing, as `VM.migrate` is: CannotMigrate before anything is done, MigrationFailed
    when the guest runs on here.  An answer that was lost is asked for again; MigrationUnknown
    when nobody can tell: it stands still here, and may run there.  Cancelled, it is here, or it
    is there when the other side had been told to run it.  When this program dies, the other side
    has it or not by the same rule; here it has ended.  Not by postcopy, whose guest would be
    lost with the program.
    """
    place = to if isinstance(to, MovePlace) else await trio.to_thread.run_sync(move_place, to)
    machine = vm.machine
    if machine.ledger.lasting:
        hint = f"Supervisor.migrate({machine.name!r}, to=…)"
        fault = Fault("", "it is kept: its supervisor would start it again", hint)
        raise CannotMigrate(machine.name, [fault])
    if machine.spec.uuid is None:
        fault = Fault("uuid", "it has none, by which it would be known there", 'uuid = "…"')
        raise CannotMigrate(machine.name, [fault])
    options = place.options(options or MigrationOptions())
    if policy_of(policy, options.downtime, options.max_downtime).postcopies:
        message = "a guest that runs there would need this program until its memory has come"
        fault = Fault("policy", message, 'policy="live", or "fast"')
        raise CannotMigrate(machine.name, [fault])
    record, ident = _record(machine, to_restart(restart)), secrets.token_hex(16)
    async with (
        machine.changing.moving(str(place)),
        offered(record, vm, place, ident, disks, collapse=collapse) as end,
        mirrors_on_record(machine, end.moves, place),
    ):
        try:
            return await migrate_held(machine, end, policy=policy, options=options, told=progress)
        except MigrationUnknown as unknown:
            await _asked_at_once(
                machine, place, ident, end, unknown, runs=record.declared == "running"
            )
            return Migrated(0.0, 0.0, 0, 0)


def _record(machine: Machine, restart: Restart) -> Record:
    """What would be on record of it, if it was."""
    if machine.state not in (State.RUNNING, State.PAUSED):
        what = Fault("state", f"it is {machine.state.value}", "have it running, or paused")
        raise CannotMigrate(machine.name, [what])
    return Record(
        name=machine.name,
        declared="running" if machine.state is State.RUNNING else "paused",
        spec=machine.spec,
        asked="",
        restart=restart,
        sockets="",
    )


async def _asked_at_once(
    machine: Machine,
    place: MovePlace,
    ident: str,
    end: RemoteEnd,
    unknown: MigrationUnknown,
    *,
    runs: bool,
) -> None:
    """An answer was lost: perhaps no more than that; MigrationUnknown when nobody can tell."""
    found = Whereabouts.UNKNOWN
    with trio.move_on_after(STEP_GRACE, shield=True):
        found = where(Source.SENT, await outcome_at(place, machine.name, ident, end.who))
    match found:
        case Whereabouts.THERE:
            await ended(machine)
        case Whereabouts.HERE:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await taken_back(machine, runs=runs, lost_ports=log.warning)
            raise MigrationFailed(machine.name, unknown.why) from unknown
        case Whereabouts.UNKNOWN:
            cure = "look there; if it does not run there and never will, `resume` it, else end it"
            raise MigrationUnknown(machine.name, unknown.why, str(place), cure) from unknown
