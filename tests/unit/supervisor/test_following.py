"""What a record takes over from a machine that changes while its owner amends it."""

from __future__ import annotations

import attrs

from qmpkit import Cpu, Disk, MachineSpec, Memory, NumaNode, Resources, Rng, TapNic, UserNic
from qmpkit.spec.layout import pinned
from qmpkit.supervisor.following import following, with_forwards_of

RECORD = MachineSpec(
    name="web",
    description="as it was amended",
    root_ports=4,
    nics=[UserNic(forwards=["2222:22"]), UserNic()],
)
# The machine has its second NIC plugged into a network of its farm.
RUNNING = pinned(attrs.evolve(RECORD, description="", nics=[UserNic(), TapNic(ifname="tap0")]))


def changed(**fields: object) -> MachineSpec:
    return following(RECORD, RUNNING, attrs.evolve(RUNNING, **fields))  # type: ignore[arg-type]


def test_what_is_plugged_is_taken_over_and_nothing_else() -> None:
    disk = Disk("/a.raw", format="raw", bus="spare-port0")
    new = changed(disks=[disk], devices=[Rng()])
    assert new.disks == (attrs.evolve(disk, id="disk0"),)
    assert new.devices == (Rng(id="rng1"),)
    assert new.description == "as it was amended"
    assert [type(nic) for nic in new.nics] == [UserNic, UserNic]
    first = new.nics[0]
    assert isinstance(first, UserNic) and len(first.forwards) == 1, "amended meanwhile"
    assert [nic.bus for nic in new.nics] == ["nic-port0", "nic-port1"], "where they sit"


def test_a_nic_that_comes_goes_or_has_its_cable_out() -> None:
    more = UserNic(id="nic7", bus="spare-port1")
    assert changed(nics=[*RUNNING.nics, more]).nics[-1] == more
    assert [nic.id for nic in changed(nics=RUNNING.nics[1:]).nics] == ["nic1"]
    cut = attrs.evolve(RUNNING.nics[1], link=False)
    second = changed(nics=[RUNNING.nics[0], cut]).nics[1]
    assert isinstance(second, UserNic) and not second.link, "in the record's own words"


def test_another_back_end_is_taken_over() -> None:
    tap = TapNic(id="nic0", ifname="tap9", bus="nic-port0")
    assert changed(nics=[tap, RUNNING.nics[1]]).nics[0] == tap


def test_amending_touches_only_forwards() -> None:
    plugged = UserNic(id="nic7", bus="spare-port1")
    wanted = [UserNic(id="nic0", forwards=["80:80"]), UserNic(id="nic1")]
    nics = with_forwards_of((*RECORD.nics, plugged), tuple(wanted))
    assert [nic.id for nic in nics] == ["nic0", "nic1", "nic7"], "what was plugged stays"
    assert isinstance(nics[0], UserNic) and nics[0].forwards == wanted[0].forwards


def test_where_a_start_has_put_it_is_not_declared() -> None:
    record = MachineSpec(
        name="web", cpu=Cpu(1, pin="auto"), numa=[NumaNode(cpus="0", memory="1GiB")]
    )
    running = attrs.evolve(
        record,
        cpu=Cpu(1, pin=["3"]),
        memory=Memory("1GiB", host_nodes="1", policy="preferred"),
        numa=[attrs.evolve(record.numa[0], host_nodes="1", policy="preferred")],
        resources=Resources(emulator="2"),
    )
    plugged = attrs.evolve(running, devices=[Rng()])
    new = following(record, running, plugged)
    assert new == attrs.evolve(record, devices=[Rng()]), "the next start chooses again"
    tuned = attrs.evolve(running, resources=Resources(emulator="2", nice=5))
    assert following(record, running, tuned).resources == Resources(nice=5)
    moved = attrs.evolve(running, resources=Resources(emulator="0"))
    assert following(record, running, moved).resources.emulator == "0", "as somebody has said"
