"""`migrate`: what is in the way, what both ends are told, and then the move."""

from __future__ import annotations

import os
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, HostLacks, MachineDied, MachineGone, SpecInvalid
from qmpkit.host.resolve import resolve
from qmpkit.machine.machine import Machine
from qmpkit.machine.state import State
from qmpkit.operations.migration.capabilities import Agreed, agree, wanted_capabilities
from qmpkit.operations.migration.compatibility import (
    cpu_faults,
    job_faults,
    missing_files,
    spec_faults,
    state_faults,
)
from qmpkit.operations.migration.convergence import Policy, Steering, policy_of
from qmpkit.operations.migration.errors import CannotMigrate
from qmpkit.operations.migration.incoming import Incoming, start_form
from qmpkit.operations.migration.moving import Migrated, Moving
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.parameters import known_parameters, parameter_faults
from qmpkit.operations.migration.postcopy import postcopy_faults
from qmpkit.operations.migration.tls import tls_faults
from qmpkit.operations.migration.transfer import Told
from qmpkit.qmp.errors import CommandRefused

__all__ = ["check_source", "in_the_way", "migrate"]


async def migrate(
    source: Machine,
    incoming: Incoming,
    *,
    policy: str | Policy = "live",
    options: MigrationOptions | None = None,
    told: Told | None = None,
) -> Migrated:
    """See `VM.migrate`."""
    options = options or MigrationOptions()
    steers = policy_of(policy, options.downtime, options.max_downtime)
    async with source.changing:
        source.must_live("migrating")
        incoming.must_wait()
        try:
            agreed = await _agreed(source, incoming, options, steers)
        except (MachineDied, MachineGone) as ended:
            if source.report is not None:
                raise
            raise incoming.has_ended() from ended
        incoming.take()
        return await Moving(source, incoming, options, agreed).go(steers, told or _nobody)


async def check_source(source: Machine) -> tuple[Fault, ...]:
    """What of the machine itself is in the way of its moving on this host."""
    jobs = await source.execute("query-jobs")
    exports = await source.execute("query-block-exports")
    migration = await source.execute("query-migrate")
    return (
        *state_faults(source.state),
        *spec_faults(source.spec),
        *await trio.to_thread.run_sync(missing_files, source.spec),
        *job_faults(jobs, exports, migration),
    )


async def in_the_way(
    source: Machine, qemu: str | os.PathLike[str] | None = None
) -> tuple[Fault, ...]:
    """See `VM.migration_faults`."""
    faults = [*await check_source(source)]
    wanted = source.spec if qemu is None else attrs.evolve(source.spec, qemu=qemu)
    try:
        await resolve(start_form(wanted, generation=None), check=False)
    except SpecInvalid as invalid:
        faults += invalid.faults
    except HostLacks as lacks:
        faults.append(Fault("qemu", lacks.what, lacks.cure))
    return tuple(faults)


async def _agreed(
    source: Machine, incoming: Incoming, options: MigrationOptions, steers: Steering
) -> Agreed:
    destination = incoming.machine
    faults = [*await check_source(source)]
    faults += await trio.to_thread.run_sync(tls_faults, options.tls)
    if incoming.spec.arch == "x86_64":
        words = [await _feature_words(machine) for machine in (source, destination)]
        faults += cpu_faults(*words)
    runs = source.state is State.RUNNING
    postcopies = steers.postcopies and runs  # else all is sent by the end of the first pass
    wanted = wanted_capabilities(
        options, throttled=steers.throttles, runs=runs, postcopies=postcopies
    )
    agreed = agree(await _capabilities(source), await _capabilities(destination), wanted)
    faults += agreed.faults
    for end, machine in (("source", source), ("destination", destination)):
        faults += parameter_faults(options, await known_parameters(machine), end)
    if postcopies:
        faults += postcopy_faults(options)
    if not faults:
        faults += await _refusals(destination, agreed)
    if faults:
        raise CannotMigrate(source.name, faults)
    return agreed


async def _refusals(destination: Machine, agreed: Agreed) -> list[Fault]:
    """Why a destination cannot do what it knows: postcopy is for the host to allow."""
    try:
        setting = {"capabilities": agreed.destination}
        await destination.execute("migrate-set-capabilities", setting)
    except CommandRefused as refused:
        said = destination.child.stderr_tail.strip()
        message = f"the destination's QEMU says: {refused.desc}"
        hint = _POSTCOPY_CURE if "postcopy-ram" in agreed.on else ""
        return [Fault("capabilities", f"{message} ({said})" if said else message, hint)]
    return []


_POSTCOPY_CURE = (
    "without postcopy, or let QEMU have userfaultfd: `sysctl vm.unprivileged_userfaultfd=1`"
)


async def _capabilities(machine: Machine) -> list[str]:
    told = await machine.execute("query-migrate-capabilities")
    return [line["capability"] for line in told]


async def _feature_words(machine: Machine) -> list[dict[str, Any]]:
    first = (await machine.execute("query-cpus-fast"))[0]["qom-path"]
    asked = {"path": first, "property": "feature-words"}
    words: list[dict[str, Any]] = await machine.execute("qom-get", asked)
    return words


def _nobody(_: object) -> None:
    """Nobody wants to know how far it is."""
