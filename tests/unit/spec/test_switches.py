"""Ports of switches, for machines that want more for hotplug than pcie.0 has room for."""

from __future__ import annotations

import attrs

from qmpkit.operations.hotplug.places import root_ports
from qmpkit.spec.block import Disk
from qmpkit.spec.devices import devices
from qmpkit.spec.layout import layout_of, pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import UserNic


def made(spec: MachineSpec) -> dict[str, dict[str, object]]:
    return {str(it["id"]): dict(it) for it in devices(spec, layout_of(spec))}


def test_a_switch_comes_with_the_first_port_that_needs_one() -> None:
    few, more = made(MachineSpec(root_ports=32)), made(MachineSpec(root_ports=34))
    assert set(more) - set(few) == {"switch0-root", "switch0", "spare-port32", "spare-port33"}
    assert {name: more[name] for name in few} == few, "nothing else moves"
    assert more["switch0"]["bus"] == "switch0-root"
    assert {more[f"spare-port{n}"]["bus"] for n in (32, 33)} == {"switch0"}


def test_all_that_there_can_be_are_at_places_of_their_own() -> None:
    found = made(MachineSpec(root_ports=160, nics=[UserNic()] * 16))
    ports = [it for it in found.values() if "chassis" in it]
    at = [(it["bus"], it["addr"]) for it in found.values() if "addr" in it]
    assert len(set(at)) == len(at) >= 180
    assert len({(it["chassis"], it.get("slot")) for it in ports}) == len(ports)
    assert all(0 < int(str(it["chassis"])) < 256 for it in ports)
    order = list(found)
    assert order.index("switch3-root") < order.index("switch3") < order.index("spare-port128")
    assert order.index("nic-port15") < order.index("switch0-root"), "bus numbers of NICs stay"


def test_they_count_and_a_device_stays_in_its_own() -> None:
    spec = pinned(
        MachineSpec(
            root_ports=40,
            disks=[Disk("a.img", format="raw", bus="spare-port39"), Disk("b.img", format="raw")],
        )
    )
    ports = root_ports(spec)
    assert ports.left == 39 and ports.used["spare-port39"] == "disk0"
    alone = attrs.evolve(spec, disks=spec.disks[:1])
    assert made(alone)["disk0"] == made(spec)["disk0"]
