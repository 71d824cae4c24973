"""One MAC twice on one segment: of those that are there, and of those that are just coming."""

from __future__ import annotations

import attrs
import pytest

from qmpkit.machine.ledger import Change
from qmpkit.spec.farm import Joined
from qmpkit.spec.farm_networks import Bridge
from qmpkit.spec.names import mac_of
from qmpkit.spec.network import DgramNic, Nic, StreamNic, TapNic, UserNic
from qmpkit.supervisor.macs import Member, double_faults
from tests.unit.supervisor.test_journal import record

MAC = "52:54:00:00:00:01"
LAN = Joined(name="lan", network=Bridge(bridge="br0"), nic="nic0")


def member(name: str, *nics: Nic, coming: Nic | None = None, joins: bool = False) -> Member:
    it = record(name, plugged=(LAN,) if joins else ())
    spec = attrs.evolve(it.spec, nics=nics)
    if coming is not None:
        more = attrs.evolve(spec, nics=[*nics, coming])
        it = attrs.evolve(it, change=Change(what="add", spec=more, begun=spec))
    return Member(attrs.evolve(it, spec=spec))


@pytest.mark.parametrize(
    ("ours", "theirs", "clash"),
    [
        (StreamNic(address="unix:/lan"), StreamNic(address="unix:/lan"), True),
        (StreamNic(address="unix:/lan"), StreamNic(address="unix:/dmz"), False),
        (StreamNic(address="h:1"), StreamNic(address="h:1", server=True), True),
        (DgramNic(remote="230.0.0.1:9"), DgramNic(remote="230.0.0.1:9"), True),
        (
            DgramNic(local="unix:/a", remote="unix:/b"),
            DgramNic(local="unix:/b", remote="unix:/a"),
            True,
        ),
        (UserNic(), UserNic(), False),
    ],
)
def test_by_what_their_cables_lead_to(ours: Nic, theirs: Nic, clash: bool) -> None:
    coming = attrs.evolve(ours, id="nic0", mac=MAC.upper())
    there = attrs.evolve(theirs, id="nic5", mac=MAC)
    for other in (member("b", there), member("b", coming=there)):
        found = [it.message for it in double_faults(member("a"), [coming], [other])]
        assert len(found) == clash
        assert all(it.startswith(f"{MAC!r} is that of 'b' on the same ") for it in found)
    other = member("b", attrs.evolve(there, mac="52:54:00:00:00:02"))
    assert not [*double_faults(member("a"), [coming], [other])]


def test_by_the_network_that_both_are_joining() -> None:
    """Taps are descriptors: nothing else tells where they lead."""
    coming = TapNic(id="nic0", mac=MAC)
    other = member("b", coming=coming, joins=True)
    (found,) = double_faults(member("a", joins=True), [coming], [other])
    assert found.message == f"{MAC!r} is that of 'b' on the same network 'lan'"
    assert not [*double_faults(member("a"), [coming], [other])]


def test_an_address_that_nobody_has_given_counts_too() -> None:
    theirs = DgramNic(id="nic0", remote="230.0.0.1:9")
    ours = attrs.evolve(theirs, mac=mac_of("b", "nic0"))
    assert len([*double_faults(member("a"), [ours], [member("b", theirs)])]) == 1
