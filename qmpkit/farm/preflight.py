"""What would keep a farm's machines from starting here, of all of them, before any is touched."""

from __future__ import annotations

import os
from collections.abc import Iterable

import attrs
import trio

from qmpkit.errors import HostLacks, QmpkitError, SpecInvalid
from qmpkit.host.resolve import resolve
from qmpkit.spec.farm import FarmMachine
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.layers import carried_over, still_there
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["preflight"]

_AT_ONCE = 8


async def preflight(
    lab: Supervisor, starting: Iterable[FarmMachine], stopping: Iterable[str]
) -> dict[str, QmpkitError]:
    """Look at all that are to start; raises what is found, in a group when it is several.

    Gives what keeps single ones down, by name: that the RAM which one was saved with fits its
    disks no more is no fault of the farm, and no reason for the others not to start.  Not looked
    at are machines whose disks one holds that is stopped first: their own starts tell.
    """
    held = {os.fspath(disk.file) for name in stopping for disk in lab.kept[name].spec.disks} - {""}
    specs = [await _with_layers(lab, machine.spec) for machine in starting]
    found: list[SpecInvalid | HostLacks] = []
    own: dict[str, QmpkitError] = {}
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def look(spec: MachineSpec) -> None:
        async with limit:
            why = await _refusal(spec)
            if why is not None and spec.resume_from is not None:
                own[spec.name] = why
                why = await _refusal(attrs.evolve(spec, resume_from=None))
            if why is not None:
                found.append(why)

    async with trio.open_nursery() as nursery:
        for spec in specs:
            files = {os.fspath(disk.file) for disk in spec.disks}
            if not files & held:
                nursery.start_soon(look, spec)
    if len(found) == 1:
        raise found[0]
    if found:
        raise ExceptionGroup("the farm cannot come up on this host", found)
    return own


async def _refusal(spec: MachineSpec) -> SpecInvalid | HostLacks | None:
    """Why it cannot start here; None when it can."""
    try:
        await resolve(spec)
    except (SpecInvalid, HostLacks) as error:
        return error
    return None


async def _with_layers(lab: Supervisor, spec: MachineSpec) -> MachineSpec:
    """As it would be started: with the layers that its disks have got meanwhile."""
    known = lab.layers_of(spec.name)
    if known is not None and spec.name not in lab.kept:
        known = await trio.to_thread.run_sync(still_there, known)
    return carried_over(spec, known)
