"""The allocator: everything placed once, nothing moved by a newcomer, too many is a fault."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.spec.addresses import (
    FIXED_SLOTS,
    RootPort,
    Wish,
    allocate_mmio,
    allocate_pci,
    port_devices,
)
from qmpkit.spec.block import Disk
from qmpkit.spec.check import faults_of, validate
from qmpkit.spec.layout import layout_of, pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import UserNic


def wishes(kind: str, count: int) -> list[Wish]:
    return [Wish(f"{kind}{number}", f"{kind}s[{number}]") for number in range(count)]


def disks(count: int, **fields: Any) -> list[Disk]:
    return [attrs.evolve(Disk(f"{n}.img", format="raw"), **fields) for n in range(count)]


@given(
    st.sets(st.sampled_from(sorted(FIXED_SLOTS))),
    st.integers(0, 16),
    st.integers(0, 48),
    st.integers(0, 32),
)
def test_no_two_devices_share_an_address(
    fixed: set[str], nics: int, disk_count: int, spare: int
) -> None:
    layout = allocate_pci(fixed, wishes("nic", nics), wishes("disk", disk_count), spare)
    assert layout.faults == ()
    assert len(layout.places) == len(fixed) + nics + disk_count
    places = [(place.bus, place.addr) for place in layout.places.values()]
    on_root = [(f"{FIXED_SLOTS[name]:#x}") for name in fixed]
    on_board = [port for port in layout.ports if isinstance(port, RootPort)]
    assert len(on_board) == len(layout.ports), "none is a switch's"
    ports = [(port.slot, port.function) for port in on_board]
    assert len(set(places)) == len(places)
    assert len(set(ports)) == len(ports)
    assert not {slot for slot, _ in ports} & {int(slot, 16) for slot in on_root}
    assert all(1 <= slot <= 30 and 0 <= function <= 7 for slot, function in ports)
    assert len({port.chassis for port in on_board}) == len(ports)
    assert len(layout.empty) == spare


@given(st.integers(0, 47), st.integers(0, 15))
def test_one_more_moves_nobody(disk_count: int, nics: int) -> None:
    before = allocate_pci((), wishes("nic", nics), wishes("disk", disk_count), 1)
    after = allocate_pci(("rng0",), wishes("nic", nics + 1), wishes("disk", disk_count + 1), 4)
    assert before.places.items() <= after.places.items()
    assert {port.name: port for port in before.ports}.items() <= {
        port.name: port for port in after.ports
    }.items()


@given(st.integers(1, 48), st.data())
def test_unplugging_one_of_a_pinned_machine_moves_nobody(count: int, data: st.DataObject) -> None:
    spec = pinned(MachineSpec(disks=disks(count), nics=[UserNic(), UserNic()], root_ports=2))
    gone = data.draw(st.sampled_from(spec.disks))
    rest = attrs.evolve(spec, disks=[disk for disk in spec.disks if disk is not gone])
    validate(rest)
    assert layout_of(rest).places.items() <= layout_of(spec).places.items()


def test_a_spare_port_can_be_asked_for_and_is_then_not_spare() -> None:
    nics = [Wish("nic0", "nics[0]", "spare-port1")]
    layout = allocate_pci((), nics, [], 3)
    assert layout.places["nic0"].bus == "spare-port1"
    assert layout.empty == ("spare-port0", "spare-port2")
    assert [port.name for port in layout.ports] == ["spare-port0", "spare-port1", "spare-port2"]


def test_only_function_0_says_that_there_are_more() -> None:
    ports = allocate_pci((), [], [], 2).ports
    first, second = (device for port in ports for device in port_devices(port))
    assert first == {
        "driver": "pcie-root-port",
        "id": "spare-port0",
        "bus": "pcie.0",
        "addr": "0x18.0",
        "chassis": 65,
        "port": 65,
        "multifunction": True,
    }
    assert second["addr"] == "0x18.1"
    assert "multifunction" not in second


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (
            MachineSpec(disks=disks(49)),
            "disks[48]: too many devices for the slots: room for 48 disks with a slot of their own",
        ),
        (
            MachineSpec(nics=[UserNic()] * 17),
            "nics[16]: too many devices for the slots: room for 16 NICs",
        ),
        (
            MachineSpec(root_ports=161),
            "root_ports: too many devices for the slots:"
            " there is room for 0 to 160 spare ports, not 161",
        ),
        (
            MachineSpec(disks=disks(7, interface="cdrom")),
            "disks[6]: too many devices for the slots: q35 has 6 SATA ports,"
            " these are 7 cdrom drives",
        ),
        (
            MachineSpec(machine="microvm", disks=disks(24)),
            "disks[23]: too many devices for the slots:"
            " microvm has room for 23 virtio devices, this makes 24",
        ),
        (
            MachineSpec(machine="microvm", machine_options={"acpi": False}, disks=disks(9)),
            "disks[8]: too many devices for the slots:"
            " microvm has room for 8 virtio devices, this makes 9",
        ),
        (
            MachineSpec(disks=disks(257, interface="virtio-scsi")),
            "disks[256]: too many devices for the slots: a SCSI controller has room for 256 disks",
        ),
        (
            MachineSpec(
                disks=[
                    Disk(f"{n}.img", format="raw", interface="virtio-scsi", iothread=f"t{n}")
                    for n in range(5)
                ]
            ),
            "disks[4].iothread: too many devices for the slots:"
            " room for 4 SCSI controllers, one an iothread",
        ),
        (
            MachineSpec(disks=disks(1, bus="disk-port48")),
            "disks[0].bus: there is no root port 'disk-port48'"
            " (nic-port0 to 15, disk-port0 to 47, device-port0 to 15,"
            " spare-port0 up to root_ports)",
        ),
        (
            MachineSpec(disks=disks(1, bus="pcie.0")),
            "disks[0].bus: there is no root port 'pcie.0'"
            " (nic-port0 to 15, disk-port0 to 47, device-port0 to 15,"
            " spare-port0 up to root_ports)",
        ),
        (
            MachineSpec(disks=disks(2, bus="disk-port1")),
            "disks[1].bus: root port 'disk-port1' already holds 'disk0'",
        ),
        (
            MachineSpec(machine="microvm", disks=disks(1, bus="disk-port0")),
            "disks[0].bus: microvm has no root ports (leave bus out)",
        ),
    ],
)
def test_what_has_no_place_is_a_fault(spec: MachineSpec, fault: str) -> None:
    assert [str(found) for found in faults_of(spec)] == [fault]
    with pytest.raises(SpecInvalid, match="machine 'vm': "):
        validate(spec)


def test_microvm_fills_its_buses_from_the_top_and_leaves_the_first_empty() -> None:
    two = allocate_mmio(wishes("disk", 23), two_ioapics=True)
    one = allocate_mmio(wishes("disk", 8), two_ioapics=False)
    assert two.faults == one.faults == ()
    assert two.places["disk0"].bus == "virtio-mmio-bus.23"
    assert two.places["disk22"].bus == "virtio-mmio-bus.1"
    assert one.places["disk0"].bus == "virtio-mmio-bus.7"
    assert one.places["disk7"].bus == "virtio-mmio-bus.0"
    assert two.places["disk0"].addr is None
