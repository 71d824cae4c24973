"""`migrate`: what is in the way, what both ends are told, and then the move."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial

import attrs
import trio

from qmpkit._trio import both
from qmpkit.errors import Fault, HostLacks, LaunchFailed, MachineDied, MachineGone, SpecInvalid
from qmpkit.host.resolve import resolve
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import MAIMED, is_stuck
from qmpkit.machine.state import State
from qmpkit.operations.migration.along import again_planned, planned_moves
from qmpkit.operations.migration.capabilities import Agreed, agree, wanted_capabilities
from qmpkit.operations.migration.compatibility import (
    cpu_faults,
    job_faults,
    missing_files,
    spec_faults,
    state_faults,
)
from qmpkit.operations.migration.convergence import Policy, Steering, policy_of
from qmpkit.operations.migration.end import End, able_of
from qmpkit.operations.migration.errors import CannotMigrate, NotArrived, no_qemu
from qmpkit.operations.migration.incoming import start_form
from qmpkit.operations.migration.moving import NEWS, Migrated, Moving, Plan
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.parameters import parameter_faults
from qmpkit.operations.migration.ports_along import has_forwards
from qmpkit.operations.migration.postcopy import postcopy_faults
from qmpkit.operations.migration.storage import SHARED, DiskMove, DiskPlaces
from qmpkit.operations.migration.storage_there import thread_faults
from qmpkit.operations.migration.tls import tls_faults
from qmpkit.operations.migration.transfer import Told

__all__ = ["agreed_on", "check_source", "in_the_way", "migrate", "migrate_held"]

log = logging.getLogger("qmpkit.operations")


async def migrate(
    source: Machine,
    end: End,
    *,
    policy: str | Policy = "live",
    options: MigrationOptions | None = None,
    told: Told | None = None,
) -> Migrated:
    """See `VM.migrate`."""
    async with source.changing.moving("another QEMU"):
        return await migrate_held(source, end, policy=policy, options=options, told=told)


async def migrate_held(
    source: Machine,
    end: End,
    *,
    policy: str | Policy,
    options: MigrationOptions | None,
    told: Told | None,
    lost_ports: Callable[[str], object] = log.warning,
) -> Migrated:
    """`migrate`, for one who holds `source.changing`.

    *lost_ports*: is told which ports the source cannot have again after one that has failed.
    """
    options = options or MigrationOptions()
    steers = policy_of(policy, options.downtime, options.max_downtime)
    source.must_live("migrating")
    end.must_wait()
    with source.subscribe(*NEWS) as news:
        try:
            moves, changed = await again_planned(source, end.moves, collapse=end.collapse)
            plan = await agreed_on(source, end, options, moves, changed, steers=steers)
        except (MachineDied, MachineGone) as ended:
            if source.report is not None:
                raise
            raise end.has_ended() from ended
        try:
            end.take()
        except NotArrived as ended:  # since it was looked at
            raise end.has_ended() from ended
        moving = Moving(source, end, plan, lost_ports, news)
        return await moving.go(steers, told or _nobody)


async def check_source(source: Machine, cables: Collection[str] = ()) -> tuple[Fault, ...]:
    """What of the machine itself is in the way of its moving on this host.

    *cables*: the NICs that have another one at the destination.
    """
    missing = partial(trio.to_thread.run_sync, missing_files, source.spec)
    (jobs, exports), (migration, lacking) = await both(
        lambda: both(
            lambda: source.execute("query-jobs"), lambda: source.execute("query-block-exports")
        ),
        lambda: both(lambda: source.execute("query-migrate"), missing),
    )
    maimed = source.maimed or (MAIMED if is_stuck(migration) else "")
    return (
        *((Fault("qemu", maimed),) if maimed else ()),
        *state_faults(source.state),
        *spec_faults(source.spec, cables),
        *lacking,
        *job_faults(jobs, exports, migration),
    )


async def in_the_way(
    source: Machine,
    qemu: str | os.PathLike[str] | None = None,
    disks: DiskPlaces = SHARED,
    *,
    collapse: bool = False,
    cables: Collection[str] = (),
) -> tuple[Fault, ...]:
    """See `VM.migration_faults`; *cables* as for `check_source`."""
    faults = [*await check_source(source, cables)]
    moves: tuple[DiskMove, ...] = ()
    try:
        moves, lacking = await planned_moves(source, disks, collapse=collapse)
        faults += lacking
    except HostLacks as lacks:
        faults.append(Fault("disks", lacks.what, lacks.cure))
    wanted = source.spec if qemu is None else attrs.evolve(source.spec, qemu=qemu)
    try:
        resolution = await resolve(start_form(wanted, generation=None), check=False)
        faults += thread_faults(moves, resolution.capabilities.version)
    except SpecInvalid as invalid:
        faults += invalid.faults
    except HostLacks as lacks:
        faults.append(Fault("qemu", lacks.what, lacks.cure))
    except LaunchFailed as failed:
        faults.append(no_qemu(failed))
    return tuple(faults)


async def agreed_on(
    source: Machine,
    end: End,
    options: MigrationOptions,
    moves: Sequence[DiskMove] = (),
    changed: Sequence[Fault] = (),
    *,
    steers: Steering,
) -> Plan:
    """What is to be done, as both ends are able to; CannotMigrate with all that is in the way."""
    words = not end.is_like(source)
    found, (here, there) = await both(
        lambda: check_source(source, end.cables),
        lambda: both(lambda: able_of(source, words=words), lambda: end.able(words=words)),
    )
    faults = [*found, *changed]
    if options.tls is not None:
        faults += await trio.to_thread.run_sync(tls_faults, options.tls)
    faults += cpu_faults(here.words, there.words)
    runs = source.state is State.RUNNING
    postcopies = steers.postcopies  # also of one that stands still: its owner may let it go on
    wanted = wanted_capabilities(
        options,
        throttled=steers.throttles,
        runs=runs,
        pauses=postcopies or end.pauses or bool(moves) or has_forwards(source.spec),
        postcopies=postcopies,
        bitmaps=any(move.bitmaps for move in moves),
    )
    agreed = agree(here.capabilities, there.capabilities, wanted)
    faults += agreed.faults
    for which, able in (("source", here), ("destination", there)):
        faults += parameter_faults(options, able.parameters, which)
    if postcopies:
        faults += postcopy_faults(options, moves)
        faults += () if faults else await _refusals(end, agreed)
    if faults:
        raise CannotMigrate(source.name, faults)
    return Plan(options, agreed, here, moves)


async def _refusals(end: End, agreed: Agreed) -> tuple[Fault, ...]:
    """A QEMU knows of postcopy also on a host that does not let it."""
    if (rest := end.rest()) is None:
        hint = 'policy="live", or "fast" (--policy)'
        return (Fault("policy", "there is no postcopy to that end", hint),)
    return await rest.refusals(agreed.destination)


def _nobody(_: object) -> None:
    """Nobody wants to know how far it is."""
