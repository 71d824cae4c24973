"""A kept machine that runs, in the networks of its farm: it joins them, leaves, loses its place."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations.hotplug.nics import add_nic
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.spec.device_ids import free_id
from qmpkit.spec.farm import Flaw, Joined
from qmpkit.spec.farm_networks import Join, Network, nic_table
from qmpkit.spec.names import mac_of
from qmpkit.spec.network import DgramNic, Nic, StreamNic
from qmpkit.spec.pluggable import pluggable_from_dict
from qmpkit.spec.suggest import suggestion
from qmpkit.supervisor.journal import Journal
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.macs import Member, double_faults, others_of
from qmpkit.supervisor.networks import Networks
from qmpkit.vm import VM

__all__ = ["Joining"]


@attrs.frozen
class Joining:
    """What it takes: those who make networks, the journal, and all machines of the supervisor."""

    networks: Networks
    journal: Journal
    machines: Mapping[str, Kept]

    async def join(self, kept: Kept, network: str, *, mac: str | None = None) -> Nic:
        """See `Supervisor.join`."""
        async with kept.turn:
            vm = _running(kept)
            found = self._network(kept, network)
            nic = _nic(vm, Join(name=network, mac=mac), found)
            joined = Joined(name=network, network=found, nic=nic.id)
            before = kept.record.plugged
            joins = attrs.evolve(kept.record, plugged=(*before, joined))
            others = others_of(kept, self.machines)
            if faults := [*double_faults(Member(joins), [nic], others)]:
                raise SpecInvalid(faults, f"machine {kept.name!r}")
            kept.note(plugged=joins.plugged)
            try:
                await self._write(kept)  # a restart that finds the NIC knows its network
                nic = await self._plug(kept, vm, nic, joined)
            except BaseException:
                if not any(it.id == nic.id for it in vm.spec.nics):
                    with trio.move_on_after(STEP_GRACE, shield=True):
                        await self._left(kept, before)
                raise
            await self._in_words_of_the_farm(kept, nic)
            return nic

    async def leave(self, kept: Kept, nic: str, *, grace: float) -> None:
        """Unplug a NIC, and remove its place in the network that it is in."""
        async with kept.turn:
            vm = _running(kept)
            try:
                await vm.nics.remove(nic, grace=grace)
            finally:
                if not any(it.id == nic for it in vm.spec.nics):
                    rest = tuple(it for it in kept.record.plugged if it.nic != nic)
                    with trio.move_on_after(STEP_GRACE, shield=True):
                        await self._left(kept, rest)

    async def flaws(self) -> dict[str, tuple[Flaw, ...]]:
        """See `Supervisor.network_flaws`."""
        running = {it.member: it for it in self.machines.values() if it.vm and not it.is_moving}
        found = await self.networks.look({at: it.record.joined for at, it in running.items()})
        return {running[member].name: flaws for member, flaws in found.items()}

    async def mend(self, kept: Kept) -> None:
        """See `Supervisor.mend_networks`."""
        async with kept.turn:
            if kept.vm is not None:  # else its start does it
                await self.networks.make(kept.member, kept.record.joined)

    async def _plug(self, kept: Kept, vm: VM, nic: Nic, joined: Joined) -> Nic:
        """With its cable, as at a start; what is plugged, without."""
        await self.networks.make(kept.member, (*kept.record.joined, joined))
        alone = attrs.evolve(vm.spec, nics=[_for_now(nic)])
        async with self.networks.plugged(alone, (joined,), kept.member) as plugged:
            (cabled,) = plugged.spec.nics
            fd = plugged.links.get(nic.id)
            added = await add_nic(vm.machine, cabled, fd, again=True)
        return attrs.evolve(nic, bus=added.bus)

    async def _in_words_of_the_farm(self, kept: Kept, nic: Nic) -> None:
        """The next start gives it a cable of its own."""
        nics = [nic if it.id == nic.id else it for it in kept.spec.nics]
        kept.note(spec=attrs.evolve(kept.spec, nics=nics))
        await kept.write(self.journal)  # were it lost: a cable on record is replaced all the same

    async def _left(self, kept: Kept, plugged: tuple[Joined, ...]) -> None:
        kept.note(plugged=plugged)
        await kept.write(self.journal)
        await self.networks.make(kept.member, kept.record.joined)

    async def _write(self, kept: Kept) -> None:
        if not await kept.write(self.journal):
            assert kept.not_durable is not None
            raise kept.not_durable

    def _network(self, kept: Kept, name: str) -> Network:
        """As those have it that are in it, or were until they have left."""
        known: dict[str, Network] = {}
        for other in self.machines.values():
            known |= other.record.networks
        if name not in known:
            hint = "`qmpkit up` a file in which a machine is in it"
            if known:
                hint = suggestion(name, tuple(known)) or f"one of {', '.join(known)}"
            fault = Fault("network", f"no machine is in a network {name!r}", hint)
            raise SpecInvalid([fault], f"machine {kept.name!r}")
        return known[name]


def _running(kept: Kept) -> VM:
    if kept.vm is None:
        message = f"it is {kept.state}, and a network is joined while it runs"
        fault = Fault("", message, "change its farm file, and `qmpkit up`")
        raise SpecInvalid([fault], f"machine {kept.name!r}")
    return kept.vm


def _for_now(nic: Nic) -> Nic:
    """Datagrams until the next start: QEMU does not survive a `stream` that is taken back early.

    To a segment's switch it is all the same.
    """
    if not isinstance(nic, StreamNic):
        return nic
    same = {name: getattr(nic, name) for name in ("model", "mac", "boot", "id", "bus", "link")}
    return DgramNic(**same)


def _nic(vm: VM, join: Join, network: Network) -> Nic:
    """The NIC, with its id and its MAC."""
    nic = pluggable_from_dict(nic_table(join, network), "the network")
    assert isinstance(nic, Nic), "as `nic_table` says"
    ident = free_id(vm.spec, "nic", len(vm.spec.nics))
    return attrs.evolve(nic, id=ident, mac=(nic.mac or mac_of(vm.spec.name, ident)).lower())
