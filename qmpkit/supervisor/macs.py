"""Two NICs of one MAC on one segment would take each other's frames.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import mac_of
from qmpkit.spec.network import DgramNic, Nic, StreamNic
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.record import Record

__all__ = ["Member", "double_faults", "others_of"]


@attrs.frozen
class Member:
    """A machine: what is on record, and what it `runs` as, whose NICs have their cables."""

    record: Record
    runs: MachineSpec | None = None

    @property
    def nics(self) -> Iterator[Nic]:
        """All that it has, and those that are being plugged."""
        change = self.record.change
        yield from (self.runs or self.record.spec).nics
        yield from () if change is None else change.spec.nics

    def mac(self, nic: Nic) -> str:
        """The NIC's address, which may follow from its id."""
        return (nic.mac or mac_of(self.record.name, nic.id)).lower()

    def segments(self, nic: Nic) -> Iterator[str]:
        """By what is seen that two NICs are on one segment: a farm's network, or a wire."""
        for join in (*self.record.joined, *self.record.plugged):
            if join.nic == nic.id:
                yield f"network {join.name!r}"
        match nic:
            case StreamNic(address=str(address)):
                yield address
            case DgramNic():
                yield from filter(None, (nic.local, nic.remote))


def double_faults(one: Member, nics: Iterable[Nic], others: Iterable[Member]) -> Iterator[Fault]:
    """That NICs which *one* is to get have the MAC of one on their segment."""
    others = [*others]
    for nic in nics:
        segments = set(one.segments(nic))
        for other in others:
            for theirs in other.nics:
                shared = segments.intersection(other.segments(theirs))
                if shared and other.mac(theirs) == one.mac(nic):
                    message = f"{one.mac(nic)!r} is that of {other.record.name!r}"
                    on = next(iter(sorted(shared)))
                    yield Fault("mac", f"{message} on the same {on}", "leave it out: one is made")


def others_of(kept: Kept, machines: Mapping[str, Kept]) -> list[Member]:
    """All machines of its supervisor but *kept* itself."""
    return [
        Member(it.record, None if it.vm is None else it.vm.spec)
        for it in machines.values()
        if it is not kept
    ]
