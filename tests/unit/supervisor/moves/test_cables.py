"""Which machines can take their places in the networks of their farm along."""

from __future__ import annotations

import attrs

from qmpkit import DgramNic, MachineSpec, TapNic, UserNic
from qmpkit.process.identity import Identity
from qmpkit.spec.facts import Facts
from qmpkit.spec.farm import FarmMachine, Joined
from qmpkit.spec.farm_networks import Bridge, Nat, Segment
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.moves.cables import cables_of, faults_away, faults_within
from qmpkit.supervisor.record import Heir, Record

SPEC = MachineSpec(name="web", nics=[UserNic(), DgramNic(), TapNic()])
PLACES = (
    Joined(name="out", network=Nat(), nic="nic0"),
    Joined(name="lan", network=Segment(), nic="nic1"),
    Joined(name="dmz", network=Bridge(bridge="br0"), nic="nic2"),
)


def record(*places: Joined) -> Record:
    return Record(
        name="web",
        declared="running",
        spec=SPEC,
        asked="",
        restart=Restart(policy="never"),
        sockets="/run/qmpkit/lab/web~",
        farm=FarmMachine(name="web", group="web", spec=SPEC, networks=places),
    )


def test_to_another_process_each_has_a_second_cable_but_qemus_own_nat() -> None:
    assert cables_of(record(*PLACES)) == ("nic1", "nic2")
    assert list(faults_within(record(*PLACES))) == []
    assert [it.path for it in faults_away(record(*PLACES))] == ["networks"]
    assert list(faults_away(record())) == []


def test_what_goes_past_qemu_stays() -> None:
    fast = attrs.evolve(PLACES[2], network=Bridge(bridge="br0", vhost=True))
    (fault,) = faults_within(record(PLACES[1], fast))
    assert "'nic2' is in 'dmz' by vhost" in str(fault) and fault.hint


def test_both_processes_are_members_while_one_becomes_the_other() -> None:
    it = record(*PLACES)
    assert it.members == ("web~",)
    heir = Heir(
        identity=Identity("boot", 17, 4),
        sockets="/run/qmpkit/lab/web",
        argv=(),
        facts=Facts(),
        spec=SPEC,
    )
    assert attrs.evolve(it, heir=heir).members == ("web~", "web")
