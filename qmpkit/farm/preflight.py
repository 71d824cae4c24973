"""What would keep a farm's machines from starting here, of all of them, before any is touched."""

from __future__ import annotations

import os
from collections.abc import Iterable

import trio

from qmpkit.errors import HostLacks, SpecInvalid
from qmpkit.host.resolve import resolve
from qmpkit.spec.farm import FarmMachine
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.layers import carried_over, still_there
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["preflight"]

_AT_ONCE = 8


async def preflight(
    lab: Supervisor, starting: Iterable[FarmMachine], stopping: Iterable[str]
) -> None:
    """Look at all that are to start; raises what is found, in a group when it is several.

    Not looked at are machines whose disks one holds that is stopped first: their own starts tell.
    """
    held = {os.fspath(disk.file) for name in stopping for disk in lab.kept[name].spec.disks} - {""}
    specs = [await _with_layers(lab, machine.spec) for machine in starting]
    found: list[SpecInvalid | HostLacks] = []
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def look(spec: MachineSpec) -> None:
        async with limit:
            try:
                await resolve(spec)
            except (SpecInvalid, HostLacks) as error:
                found.append(error)

    async with trio.open_nursery() as nursery:
        for spec in specs:
            files = {os.fspath(disk.file) for disk in spec.disks}
            if not files & held:
                nursery.start_soon(look, spec)
    if len(found) == 1:
        raise found[0]
    if found:
        raise ExceptionGroup("the farm cannot come up on this host", found)


async def _with_layers(lab: Supervisor, spec: MachineSpec) -> MachineSpec:
    """As it would be started: with the layers that its disks have got meanwhile."""
    known = lab.layers_of(spec.name)
    if known is not None and spec.name not in lab.kept:
        known = await trio.to_thread.run_sync(still_there, known)
    return carried_over(spec, known)
