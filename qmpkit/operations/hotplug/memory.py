"""Memory that comes and goes while the guest runs: modules (pc-dimm)."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.check_resources import check_module
from qmpkit.host.findings import raise_problems
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.hotplug.growing import grown_in
from qmpkit.operations.hotplug.places import changes_between
from qmpkit.operations.hotplug.plug import plug_parts, unplug_parts
from qmpkit.operations.undertaking import undertaking
from qmpkit.spec.boards import board_of
from qmpkit.spec.device_ids import free_id
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.layout import pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import without_dimm
from qmpkit.spec.numa import Module
from qmpkit.spec.peripherals import VirtioMem
from qmpkit.spec.suggest import among

__all__ = ["MODULE_GRACE", "add_dimm", "check_room", "located", "remove_dimm"]

MODULE_GRACE = 60.0
"""Seconds in which a guest moves what is in a module: 0.1 s when that is little.

Each page of its balloon takes it 1 ms under TCG.
"""


async def add_dimm(machine: Changeable, size: int | str, node: int | None) -> Dimm:
    """See `GuestMemory.add`."""
    async with machine.changing:
        old = pinned(machine.spec)
        _refuse_without_slots(machine, old)
        dimms = [*old.memory.dimms, Dimm(size=size, id=free_id(old, "dimm"), node=node)]
        new = attrs.evolve(old, memory=attrs.evolve(old.memory, dimms=dimms))
        _, parts = changes_between(old, new)
        dimm = new.memory.dimms[-1]
        await check_room(new, dimm)
        where = partial(located, machine, new)
        await plug_parts(machine, f"add memory {dimm.id!r}", new, parts, last=where)
        return _dimm_of(machine, machine.spec, dimm.id)


def _refuse_without_slots(machine: Changeable, spec: MachineSpec) -> None:
    if spec.memory.slots:
        return
    board = board_of(spec.machine, spec.arch)
    if board is not None and board.memory_hotplug == "never":
        fault = Fault("memory", f"{board.name} has no memory hotplug")
    else:
        hint = 'start the machine with them: slots = 8, maxmem = "16GiB"'
        fault = Fault("memory.slots", "it has no slots for modules of memory", hint)
    raise SpecInvalid([fault], f"machine {machine.name!r}")


async def check_room(new: MachineSpec, module: Module) -> None:
    """Raise what this host lacks for the one module, which *new* has."""
    problems = await trio.to_thread.run_sync(lambda: list(check_module(new, module)))
    raise_problems(problems, f"machine {new.name!r}, memory {module.id!r}")


async def located(machine: Changeable, spec: MachineSpec) -> MachineSpec:
    """*spec* with where its modules and virtio-mem devices lie (`query-memory-devices`).

    A restart lays them one after another: once one in between is removed, the others would
    come to lie elsewhere, and a saved RAM would not fit.
    """
    if not spec.memory.dimms and not grown_in(spec):
        return spec
    found: dict[str, Any] = {
        it["data"].get("id"): it["data"] for it in await machine.execute("query-memory-devices")
    }
    dimms = [
        attrs.evolve(it, address=found[it.id]["addr"]) if it.id in found else it
        for it in spec.memory.dimms
    ]
    devices = [
        attrs.evolve(it, address=found[it.id]["memaddr"])
        if isinstance(it, VirtioMem) and it.id in found
        else it
        for it in spec.devices
    ]
    memory = attrs.evolve(spec.memory, dimms=dimms)
    return attrs.evolve(spec, memory=memory, devices=devices)


async def _note_addresses(machine: Changeable) -> None:
    """Write down where those of its start lie, which were added by no one."""
    spec = machine.spec
    noted = await located(machine, spec)
    if noted != spec:
        what = "write down where its memory lies"
        change = Change(what=what, spec=noted, begun=spec, sure=True)
        async with undertaking(machine, change) as it:
            it.done()


async def remove_dimm(machine: Changeable, dimm_id: str, grace: float) -> Dimm:
    """See `GuestMemory.remove`."""
    async with machine.changing:
        _dimm_of(machine, machine.spec, dimm_id)
        await _note_addresses(machine)
        old = pinned(machine.spec)
        dimm = _dimm_of(machine, old, dimm_id)
        new = attrs.evolve(old, memory=without_dimm(old.memory, dimm_id))
        going, _ = changes_between(old, new)
        await unplug_parts(machine, f"remove memory {dimm_id!r}", new, going, grace=grace)
        return dimm


def _dimm_of(machine: Changeable, spec: MachineSpec, dimm_id: str) -> Dimm:
    by_id = {dimm.id: dimm for dimm in spec.memory.dimms}
    if dimm_id not in by_id:
        fault = Fault("dimm", f"it has no module {dimm_id!r}", among(dimm_id, by_id))
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    return by_id[dimm_id]
