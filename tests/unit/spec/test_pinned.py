"""A spec with all that is chosen written down is the same machine, whatever leaves it then."""

from __future__ import annotations

import attrs
import pytest

from qmpkit import (
    Disk,
    MachineSpec,
    Rng,
    ScsiController,
    Share,
    UsbController,
    UsbHost,
    UsbTablet,
    UserNic,
    Vfio,
    Vsock,
    spec_from_toml,
    spec_to_toml,
)
from qmpkit.spec.argv import render
from qmpkit.spec.chardev import FdEndpoint
from qmpkit.spec.check import faults_of
from qmpkit.spec.facts import Facts
from qmpkit.spec.layout import layout_of, pinned
from qmpkit.spec.parts import parts_between, parts_of, refused_changes

FACTS = Facts(binary="/usr/bin/qemu-system-x86_64", accel="tcg")


def disk(number: int, interface: str = "virtio-blk", **more: object) -> Disk:
    return Disk(f"/{number}.raw", format="raw", interface=interface, **more)  # type: ignore[arg-type]


def argv(spec: MachineSpec) -> list[str]:
    return render(spec, FACTS, {"qmp": FdEndpoint(3), "serial0": FdEndpoint(4)})


RICH = MachineSpec(
    name="rich",
    memory="1GiB",
    root_ports=2,
    nics=[UserNic(), UserNic(bus="nic-port3")],
    disks=[
        disk(0),
        disk(1, "virtio-scsi"),
        disk(2, "virtio-scsi", iothread="io"),
        disk(3, "usb"),
        disk(4, "nvme", bus="spare-port0"),
        disk(5, "scsi-cdrom"),
    ],
    devices=[Rng(), UsbTablet(), Vsock(cid=9), UsbHost(hostbus=1, hostaddr=2)],
)


def test_it_is_the_same_command() -> None:
    assert faults_of(RICH) == faults_of(pinned(RICH)) == ()
    assert argv(pinned(RICH)) == argv(RICH)
    assert pinned(pinned(RICH)) == pinned(RICH)
    assert spec_from_toml(spec_to_toml(pinned(RICH))) == pinned(RICH)


@pytest.mark.parametrize("leaves", ["disk0", "disk1", "disk3", "nic0", "nic1", "rng1", "tablet0"])
def test_what_leaves_moves_nothing_else(leaves: str) -> None:
    old = pinned(RICH)
    new = attrs.evolve(
        old,
        disks=[it for it in old.disks if it.id != leaves],
        nics=[it for it in old.nics if it.id != leaves],
        devices=[it for it in old.devices if it.id != leaves],
    )
    assert faults_of(new) == ()
    going, coming = parts_between(parts_of(old), parts_of(new))
    assert coming == () and refused_changes(parts_of(old), parts_of(new)) == []
    assert [part.id for part in going if part.kind == "device"] == [leaves]
    assert going[0].kind == "device", "what the guest has goes before what is behind it"
    assert layout_of(new).ports == layout_of(old).ports


def test_what_comes_comes_after_what_it_needs() -> None:
    old = pinned(MachineSpec(memory="1GiB", root_ports=4))
    new = attrs.evolve(old, disks=[disk(0, iothread="io", bus="spare-port1")])
    going, coming = parts_between(parts_of(old), parts_of(new))
    assert going == ()
    assert [part.kind for part in coming] == ["object", "node", "node", "device"]


@pytest.mark.parametrize(
    ("devices", "fault"),
    [
        ([Vsock(cid=2)], "devices[0].cid: a guest's CID is from 3 to 4294967294, not 2"),
        ([Rng(file="")], "devices[0].file: the path is empty"),
        ([Rng(max_bytes=0)], "devices[0].max_bytes: must be at least 1, not 0"),
        ([UsbController(ports=16)], "devices[0].ports: must be from 1 to 15, not 16"),
        ([UsbHost(hostbus=0, hostaddr=1)], "devices[0].hostbus: must be from 1 to 255, not 0"),
        (
            [Vfio(host="01:00.0")],
            "devices[0].host: '01:00.0' is not the address of a PCI device (0000:01:00.0)",
        ),
        (
            [Share(tag="t", socket="/s")],
            "devices[0]: virtiofsd reads the guest's memory, which is not shared"
            " (memory.share = true)",
        ),
        (
            [UsbTablet(controller="usb9")],
            "devices[0].controller: there is no USB controller 'usb9'",
        ),
        (
            [UsbController(ports=1), UsbTablet(), UsbTablet()],
            "devices[2]: too many devices for the slots: a USB controller has room for 1 devices",
        ),
        (
            [UsbTablet(unit=1), UsbTablet(unit=1)],
            "devices[1].unit: 1 is already the place of 'tablet0' on 'usb0'",
        ),
        (
            [Rng(id="rng0"), Rng(id="rng0")],
            "devices[1].id: 'rng0' is already the name of devices[0].id",
        ),
        (
            [ScsiController(bus="device-port16")],
            "devices[0].bus: there is no root port 'device-port16' (nic-port0 to 15,"
            " disk-port0 to 47, device-port0 to 15, spare-port0 up to root_ports)",
        ),
    ],
)
def test_faults_of_devices(devices: list[object], fault: str) -> None:
    spec = MachineSpec(devices=devices)  # type: ignore[arg-type]
    assert [str(found) for found in faults_of(spec)] == [fault]


def test_a_board_without_pci() -> None:
    spec = MachineSpec(machine="microvm", devices=[Rng(), UsbTablet()], disks=[disk(0, "usb")])
    told = {str(fault) for fault in faults_of(spec)}
    assert "devices[1]: microvm has no PCI, which this kind needs" in told
    assert any("microvm has no bus for usb" in it for it in told)
