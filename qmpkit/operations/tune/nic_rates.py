"""The rates of a machine's tap NICs: bound within the host, for none of it is QEMU's to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from qmpkit.errors import Fault, HostLacks, SpecInvalid
from qmpkit.host.tap_rates import Rate, set_rate
from qmpkit.operations.tune.threads import Tunable
from qmpkit.operations.tune.usage import tap_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Nic, TapNic

__all__ = ["bound_nics", "bounding", "freed", "rates_of"]

_FREE_GRACE = 5.0
"""Seconds that giving a device free may take, a system call."""


def rates_of(spec: MachineSpec) -> dict[str, Rate]:
    """The rate of each tap NIC that has one, by id."""
    found = {
        nic.id: Rate(nic.max_received, nic.max_sent) for nic in spec.nics if isinstance(nic, TapNic)
    }
    return {name: rate for name, rate in found.items() if rate != Rate()}


async def bound_nics(
    machine: Tunable, spec: MachineSpec, before: Mapping[str, Rate] | None = None
) -> None:
    """Bound the tap NICs of *machine* as *spec* says; those only in *before* are let go.

    They are free again when the machine has ended.  Raises HostLacks, and then all are as
    *before*.
    """
    wanted, had = rates_of(spec), before or {}
    if wanted == had:
        return
    taps = await trio.to_thread.run_sync(_taps, machine, {*wanted, *had})
    done: list[str] = []
    try:
        for name, ifname in taps.items():
            done.append(name)
            await trio.to_thread.run_sync(set_rate, ifname, wanted.get(name, Rate()))
    except BaseException as error:
        if isinstance(error, HostLacks):
            error.source = f"machine {machine.name!r}"
        with trio.move_on_after(_FREE_GRACE, shield=True):
            for name in done:
                await trio.to_thread.run_sync(_set_if_there, taps[name], had.get(name, Rate()))
        raise
    if new := {name: ifname for name, ifname in taps.items() if name not in had}:
        machine.services.start_soon(_free_at_end, machine, new)


@asynccontextmanager
async def bounding(machine: Tunable, nic: Nic) -> AsyncIterator[None]:
    """The device of a NIC that is plugged within the block, bound as it says before it is.

    It is free again when the block fails (unless the guest does not let go of the NIC), and
    when the machine has ended.  Raises HostLacks, and SpecInvalid for one that is handed
    over: that is bound by who has made it.
    """
    rate = Rate(nic.max_received, nic.max_sent) if isinstance(nic, TapNic) else Rate()
    if not isinstance(nic, TapNic) or rate == Rate():
        yield
        return
    if (why := _why_not(machine.spec, nic)) is not None:
        raise SpecInvalid([Fault("nic", why)], f"machine {machine.name!r}")
    assert nic.ifname is not None
    try:
        await trio.to_thread.run_sync(set_rate, nic.ifname, rate)
        yield
    finally:
        if any(it.id == nic.id for it in machine.spec.nics):
            machine.services.start_soon(_free_at_end, machine, {nic.id: nic.ifname})
        else:
            await freed(nic)


def _why_not(spec: MachineSpec, nic: TapNic) -> str | None:
    if nic.ifname is None:
        return "a device that is handed over is bound by who has made it"
    for other in spec.nics:
        if isinstance(other, TapNic) and other.ifname == nic.ifname:
            return f"{nic.ifname!r} is the device of {other.id!r}"
    return None


async def freed(nic: Nic) -> None:
    """Let the device of a NIC go that has been unplugged."""
    if isinstance(nic, TapNic) and nic.ifname and (nic.max_received or nic.max_sent):
        with trio.move_on_after(_FREE_GRACE, shield=True):
            await trio.to_thread.run_sync(_set_if_there, nic.ifname, Rate())


def _taps(machine: Tunable, names: set[str]) -> dict[str, str]:
    found = {}
    for nic in machine.spec.nics:
        if nic.id in names:
            ifname = tap_of(nic, machine.child.pid, machine.argv)
            if ifname is None:
                raise HostLacks(f"the tap device of NIC {nic.id!r} is not to be seen")
            found[nic.id] = ifname
    return found


def _set_if_there(ifname: str, rate: Rate) -> None:
    try:
        set_rate(ifname, rate)
    except HostLacks:
        return  # it has gone, or the right to it: there is nothing to be put back


async def _free_at_end(machine: Tunable, taps: Mapping[str, str]) -> None:
    """A device that its owner has made outlives the machine; one of ours is gone by then.

    That of a NIC which was unplugged is free already, and may be another machine's by now.
    """
    try:
        await machine.child.wait()
    finally:
        # Left while it lives: it is a kept machine's, which the next program looks after.
        if machine.child.status is not None:
            with trio.move_on_after(_FREE_GRACE, shield=True):
                there = {nic.id for nic in machine.spec.nics}
                for ifname in (it for name, it in taps.items() if name in there):
                    await trio.to_thread.run_sync(_set_if_there, ifname, Rate())
