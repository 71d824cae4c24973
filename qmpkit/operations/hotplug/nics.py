"""NICs that come and go while the guest runs, and their cables."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial

import attrs
import trio

from qmpkit.errors import Fault, QmpkitError, SpecInvalid
from qmpkit.host.check_network import check_network
from qmpkit.host.findings import raise_problems
from qmpkit.machine.ledger import Change
from qmpkit.machine.links import set_links
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.hotplug.places import changes_between, empty_port
from qmpkit.operations.hotplug.plug import plug_parts, unplug_parts
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.tune.nic_rates import bounding, freed
from qmpkit.operations.tune.threads import Tunable
from qmpkit.operations.undertaking import undertaking
from qmpkit.spec.addresses import NIC_PORTS
from qmpkit.spec.chardev import NamedEndpoint
from qmpkit.spec.device_ids import free_id
from qmpkit.spec.layout import pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import netdev_id
from qmpkit.spec.network import NIC_KINDS, Nic, UserNic, link_needed
from qmpkit.spec.suggest import among

__all__ = ["Cable", "add_nic", "change_nic", "nic_of", "remove_nic", "set_link"]

Cable = int | socket.socket
"""A tap device or a connected socket, for a NIC that has no address of its own."""


def nic_of(machine: Changeable, nic_id: str) -> Nic:
    """The NIC of that id; SpecInvalid when the machine has none."""
    by_id = {nic.id: nic for nic in machine.spec.nics}
    if nic_id not in by_id:
        fault = Fault("nic", f"it has no NIC {nic_id!r}", among(nic_id, by_id))
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    return by_id[nic_id]


async def add_nic(machine: Tunable, nic: Nic, cable: Cable | None, *, again: bool = False) -> Nic:
    """See `Nics.add`; *again*: whoever starts it the next time hands such a cable over too."""
    async with machine.changing:
        return await _add(machine, nic, cable, again=again)


async def remove_nic(machine: Tunable, nic_id: str, grace: float) -> Nic:
    """See `Nics.remove`."""
    async with machine.changing:
        nic = nic_of(machine, nic_id)
        await _remove(machine, nic, grace)
        return nic


async def change_nic(machine: Tunable, nic: Nic, cable: Cable | None, grace: float) -> Nic:
    """See `Nics.change`."""
    async with machine.changing:
        _check_kind(machine, nic)
        old = attrs.evolve(nic_of(machine, nic.id), bus=_bus_of(machine, nic.id))
        nic = attrs.evolve(nic, mac=nic.mac or old.mac, bus=old.bus, model=old.model)
        others = [it for it in pinned(machine.spec).nics if it.id != nic.id]
        new = attrs.evolve(pinned(machine.spec), nics=[*others, nic])
        free = attrs.evolve(nic, forwards=()) if isinstance(nic, UserNic) else nic
        await _check(machine, new, free, cable)  # its ports may be those that it has now
        try:
            await _remove(machine, old, grace)
            return await _add(machine, nic, cable)
        except BaseException as error:
            there = any(it.id == nic.id for it in machine.spec.nics)
            if not there and not link_needed(old):
                await _put_back(machine, old, error)
            raise


async def _put_back(machine: Tunable, nic: Nic, error: BaseException) -> None:
    """Plug a NIC in again that *error* has cost; it is that error which its caller sees."""
    with trio.move_on_after(STEP_GRACE, shield=True):
        try:
            await _add(machine, nic, None)
        except QmpkitError as lost:
            error.add_note(f"the NIC {nic.id!r} cannot be plugged in again: {lost}")


def _bus_of(machine: Changeable, nic_id: str) -> str | None:
    return next(nic.bus for nic in pinned(machine.spec).nics if nic.id == nic_id)


def _check_kind(machine: Changeable, nic: object) -> None:
    if not isinstance(nic, tuple(NIC_KINDS.values())):
        raise SpecInvalid([Fault("nic", f"cannot be {nic!r}")], f"machine {machine.name!r}")


async def _add(machine: Tunable, nic: Nic, cable: Cable | None, *, again: bool = False) -> Nic:
    old = pinned(machine.spec)
    _check_kind(machine, nic)
    nic = attrs.evolve(nic, id=nic.id or free_id(old, "nic", len(old.nics)))
    if nic.bus is None:
        bus = await empty_port(machine, old, nic.id, NIC_PORTS.prefix, "nic")
        nic = attrs.evolve(nic, bus=bus)
    new = attrs.evolve(old, nics=[*old.nics, nic])
    await _check(machine, new, nic, cable, again=again)
    name = netdev_id(nic.id)
    _, parts = changes_between(
        old, new, {nic.id: NamedEndpoint(name)} if cable is not None else None
    )
    fds = {} if cable is None else {name: cable if isinstance(cable, int) else cable.fileno()}
    async with bounding(machine, nic):
        pull = None if nic.link else partial(_pull, machine, nic)
        await plug_parts(machine, f"add NIC {nic.id!r}", new, parts, fds=fds, last=pull)
    return nic


async def _pull(machine: Changeable, nic: Nic) -> None:
    await machine.execute("set_link", {"name": nic.id, "up": False})


async def _check(
    machine: Changeable, new: MachineSpec, nic: Nic, cable: Cable | None, *, again: bool = False
) -> None:
    """Raise all that stands in the way, before anything is done."""
    whose = f"machine {machine.name!r}, NIC {nic.id!r}"
    if faults := list(_cable_faults(nic, cable, lasting=machine.ledger.lasting and not again)):
        raise SpecInvalid(faults, whose)
    alone = attrs.evolve(new, nics=[nic])
    raise_problems(await trio.to_thread.run_sync(lambda: list(check_network(alone))), whose)


def _cable_faults(nic: Nic, cable: Cable | None, *, lasting: bool) -> Iterator[Fault]:
    needed = link_needed(nic)
    if needed and cable is None:
        yield Fault("fd", "it has no address, and no descriptor came with it", "fd=")
    elif needed and lasting:
        hint = "a NIC with an address or a device's name"
        yield Fault("fd", "a kept machine starts again when nobody hands it over", hint)
    elif not needed and cable is not None:
        yield Fault("fd", "it has an address of its own", "leave fd out")


async def _remove(machine: Changeable, nic: Nic, grace: float) -> None:
    old = pinned(machine.spec)
    new = attrs.evolve(old, nics=[it for it in old.nics if it.id != nic.id])
    going, _ = changes_between(old, new)
    try:
        await unplug_parts(machine, f"remove NIC {nic.id!r}", new, going, grace=grace)
    finally:
        if machine.spec is new:  # it may be gone although its unplug was cancelled
            await freed(nic)


async def set_link(machine: Changeable, nic_id: str, up: bool) -> None:
    """See `Nics.set_link`."""
    async with machine.changing:
        nic = attrs.evolve(nic_of(machine, nic_id), link=up)
        new = attrs.evolve(
            machine.spec, nics=[nic if it.id == nic_id else it for it in machine.spec.nics]
        )
        what = f"{'put in' if up else 'pull'} the cable of NIC {nic_id!r}"
        change = Change(what=what, spec=new, begun=machine.spec)
        async with undertaking(machine, change) as it:
            try:
                await machine.execute("set_link", {"name": nic_id, "up": up})
                it.done()
            finally:
                if not it.is_done:
                    with trio.move_on_after(STEP_GRACE, shield=True):
                        await set_links(machine, also_up=True)
