"""The networks that a kept machine has joined while it ran, on its record."""

from __future__ import annotations

import attrs
import pytest

from qmpkit.spec.farm import FarmMachine, Joined
from qmpkit.spec.farm_networks import Bridge, Nat, Network, Segment
from qmpkit.spec.network import DgramNic, Nic, StreamNic, UserNic
from qmpkit.supervisor.record import Malformed, Record
from tests.unit.supervisor.test_journal import record

NETWORKS = [
    Segment(subnet="10.1.0.0/24"),
    Segment(socket="stream"),
    Bridge(bridge="br0"),
    Nat(restrict=True),
]


@pytest.mark.parametrize("network", NETWORKS)
def test_they_read_back(network: Network) -> None:
    joined = Joined(name="lan", network=network, nic="nic1", ip=None)
    it = record(plugged=(joined,))
    assert Record.from_json(it.to_json()) == it
    torn = it.to_json().replace('"kind"', '"kin"')
    with pytest.raises(Malformed):
        Record.from_json(torn)


LAN = Joined(name="lan", network=Segment(), nic="nic0")
DMZ = Joined(name="dmz", network=Segment(), nic="nic0")


@pytest.mark.parametrize(
    ("nics", "plugged", "joined"),
    [
        ([DgramNic(id="nic0")], (), (LAN,)),
        ([StreamNic(id="nic0")], (), (LAN,)),
        ([], (), ()),  # unplugged
        ([UserNic(id="nic0")], (), ()),  # … and its id is another's
        ([DgramNic(id="nic0")], (DMZ,), (DMZ,)),
        ([], (DMZ,), ()),
    ],
)
def test_the_places_of_its_farm_are_those_of_its_nics(
    nics: list[Nic], plugged: tuple[Joined, ...], joined: tuple[Joined, ...]
) -> None:
    it = record(plugged=plugged)
    machine = FarmMachine(name=it.name, group="web", spec=it.spec, networks=(LAN,))
    it = attrs.evolve(it, farm=machine, spec=attrs.evolve(it.spec, nics=nics))
    assert it.joined == joined
    assert it.networks.keys() == {"lan", *(join.name for join in plugged)}


def test_one_whose_nic_has_gone_is_joined_no_longer() -> None:
    joined = Joined(name="lan", network=Segment(), nic="nic1")
    it = record(plugged=(joined,))
    assert it.joined == ()
    nics = [DgramNic(id="nic1")]
    assert attrs.evolve(it, spec=attrs.evolve(it.spec, nics=nics)).joined == (joined,)
