"""The dicts that the command line and hotplug share."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from qmpkit.spec.addresses import Place
from qmpkit.spec.block import Disk, blockdevs_of, device_of, disk_faults
from qmpkit.spec.chardev import Serial
from qmpkit.spec.devices import devices, objects
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.layout import layout_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import (
    DgramNic,
    Forward,
    Nic,
    StreamNic,
    TapNic,
    UserNic,
    netdev_of,
    nic_device_of,
)
from qmpkit.spec.peripherals import VirtioMem
from qmpkit.spec.sizes import GIB

PORT = Place("disk-port0", "0x0")
MMIO = Place("virtio-mmio-bus.3")


def all_devices(spec: MachineSpec) -> dict[str, Any]:
    return {str(device["id"]): device for device in devices(spec, layout_of(spec))}


def test_a_write_that_fails_stops_the_guest_where_that_can_be() -> None:
    plain = Disk("a.raw", format="raw", id="d")
    assert device_of(plain, PORT)["werror"] == "stop"
    told = Disk("a.raw", format="raw", id="d", werror="report", interface="virtio-scsi")
    assert device_of(told, PORT)["werror"] == "report"
    for interface in ("nvme", "cdrom"):
        disk = attrs.evolve(plain, interface=interface)
        assert "werror" not in device_of(disk, PORT)
        assert not list(disk_faults(disk, "d"))
        (fault,) = disk_faults(attrs.evolve(disk, werror="report"), "d")
        assert fault.path == "d.werror"


def test_a_disk_is_a_file_node_a_format_node_and_a_device() -> None:
    disk = Disk("a,b.qcow2", format="qcow2", id="data", serial="S1", boot=0, iothread="io")
    lower, upper = blockdevs_of(disk)
    cache = {"direct": False, "no-flush": False}
    assert lower == {
        "driver": "file",
        "node-name": "qk-data-file",
        "filename": "a,b.qcow2",
        "aio": "threads",
        "read-only": False,
        "discard": "unmap",
        "cache": cache,
    }
    assert upper == {
        "driver": "qcow2",
        "node-name": "qk-data",
        "file": "qk-data-file",
        "read-only": False,
        "discard": "unmap",
        "cache": cache,
    }
    assert device_of(disk, PORT) == {
        "driver": "virtio-blk-pci",
        "id": "data",
        "bus": "disk-port0",
        "addr": "0x0",
        "drive": "qk-data",
        "iothread": "qk-io-io",
        "write-cache": "on",
        "werror": "stop",
        "serial": "S1",
        "bootindex": 0,
    }


@pytest.mark.parametrize(
    ("cache", "direct", "no_flush", "write_cache"),
    [
        ("writeback", False, False, "on"),
        ("none", True, False, "on"),
        ("writethrough", False, False, "off"),
        ("directsync", True, False, "off"),
        ("unsafe", False, True, "on"),
    ],
)
def test_cache_modes(cache: Any, direct: bool, no_flush: bool, write_cache: str) -> None:
    disk = Disk("a", format="raw", cache=cache, id="d")
    for node in blockdevs_of(disk):
        assert node["cache"] == {"direct": direct, "no-flush": no_flush}
    assert device_of(disk, PORT)["write-cache"] == write_cache


def test_other_disk_interfaces() -> None:
    def of(interface: Any, place: Place) -> Any:
        return device_of(Disk("a", format="raw", interface=interface, id="d"), place, 3)

    assert of("virtio-blk", MMIO)["driver"] == "virtio-blk-device"
    assert of("nvme", PORT).items() >= {"driver": "nvme", "serial": "d"}.items()
    scsi = of("virtio-scsi", Place("scsi0.0"))
    assert scsi.items() >= {"driver": "scsi-hd", "bus": "scsi0.0", "scsi-id": 3, "lun": 0}.items()
    assert of("cdrom", Place("ide.1")) == {
        "driver": "ide-cd",
        "id": "d",
        "bus": "ide.1",
        "drive": "qk-d",
    }
    assert of("scsi-cdrom", Place("scsi0.0"))["driver"] == "scsi-cd"


@pytest.mark.parametrize("interface", ["cdrom", "scsi-cdrom"])
def test_a_cdrom_is_opened_for_reading_only(interface: Any) -> None:
    nodes = blockdevs_of(Disk("a.iso", format="raw", interface=interface, id="cd"))
    assert [node["read-only"] for node in nodes] == [True, True]


def test_options_of_a_disk_reach_its_nodes() -> None:
    disk = Disk(
        "/dev/sdb",
        format="raw",
        driver="host_device",
        discard=False,
        detect_zeroes="on",
        aio="io_uring",
        readonly=True,
        node="top",
        id="d",
    )
    lower, upper = blockdevs_of(disk)
    assert lower["driver"] == "host_device"
    assert lower["aio"] == "io_uring"
    assert "detect-zeroes" not in lower
    assert upper["detect-zeroes"] == "on"
    assert upper["node-name"] == "top"
    assert upper["discard"] == "ignore"
    assert upper["read-only"] is True


def test_disks_get_names_by_their_place_and_keep_those_they_have() -> None:
    spec = MachineSpec(
        disks=[Disk("a", format="raw"), Disk("b", format="raw", id="disk0")],
        nics=[UserNic(), UserNic(id="nic0"), UserNic()],
    )
    assert [disk.id for disk in spec.disks] == ["disk1", "disk0"]
    assert [nic.id for nic in spec.nics] == ["nic1", "nic0", "nic2"]


@pytest.mark.parametrize(
    ("nic", "netdev"),
    [
        (UserNic(id="n"), {"type": "user", "id": "qk-n"}),
        (
            UserNic(
                id="n",
                net="10.1.0.0/16",
                restrict=True,
                forwards=[Forward(2222, 22), Forward(53, 53, "udp", "0.0.0.0", "10.0.2.15")],
            ),
            {
                "type": "user",
                "id": "qk-n",
                "net": "10.1.0.0/16",
                "restrict": True,
                "hostfwd": [
                    {"str": "tcp:127.0.0.1:2222-:22"},
                    {"str": "udp:0.0.0.0:53-10.0.2.15:53"},
                ],
            },
        ),
        (
            TapNic(id="n", ifname="t,0", vhost=True, queues=2),
            {
                "type": "tap",
                "id": "qk-n",
                "ifname": "t,0",
                "script": "no",
                "downscript": "no",
                "vhost": True,
                "queues": 2,
            },
        ),
        (
            StreamNic(id="n", address="unix:/a,b", server=True),
            {
                "type": "stream",
                "id": "qk-n",
                "server": True,
                "addr": {"type": "unix", "path": "/a,b"},
            },
        ),
        (
            StreamNic(id="n", address="[::1]:5"),
            {
                "type": "stream",
                "id": "qk-n",
                "server": False,
                "addr": {"type": "inet", "host": "::1", "port": "5"},
            },
        ),
        (
            DgramNic(id="n", local="unix:/a", remote="unix:/b"),
            {
                "type": "dgram",
                "id": "qk-n",
                "local": {"type": "unix", "path": "/a"},
                "remote": {"type": "unix", "path": "/b"},
            },
        ),
    ],
)
def test_netdevs(nic: Nic, netdev: dict[str, Any]) -> None:
    assert netdev_of(nic) == netdev


def test_a_nic_device_has_a_mac_and_a_rom_only_to_boot() -> None:
    place = Place("nic-port0", "0x0")
    plain = nic_device_of(UserNic(id="n"), place, "web")
    assert plain["driver"] == "virtio-net-pci"
    assert str(plain["mac"]).startswith("52:54:")
    assert plain["romfile"] == ""
    boots = nic_device_of(UserNic(id="n", boot=1, mac="02:00:00:00:00:01"), place, "web")
    assert "romfile" not in boots
    assert boots["bootindex"] == 1
    assert boots["mac"] == "02:00:00:00:00:01"
    assert "romfile" not in nic_device_of(UserNic(id="n"), MMIO, "web")
    queues = nic_device_of(TapNic(id="n", ifname="t", queues=4), place, "web")
    assert queues.items() >= {"mq": True, "vectors": 10}.items()


def test_console_and_agent_ports() -> None:
    spec = MachineSpec(
        serials=[Serial("com"), Serial("hvc", "virtio"), Serial("log", "virtio")], agent=True
    )
    found = all_devices(spec)
    assert found["vserial0"].items() >= {"driver": "virtio-serial-pci", "bus": "pcie.0"}.items()
    assert found["com"]["index"] == 0
    assert (found["hvc"]["nr"], found["agent0"]["nr"], found["log"]["nr"]) == (0, 1, 2)
    assert found["agent0"] == {
        "driver": "virtserialport",
        "id": "agent0",
        "bus": "vserial0.0",
        "nr": 1,
        "chardev": "qk-agent",
        "name": "org.qemu.guest_agent.0",
    }


def test_every_optional_device_on_q35() -> None:
    spec = MachineSpec(
        rng=True, balloon=True, vmgenid="auto", vsock=7, display="std", root_ports=1, serials=0
    )
    drivers = {name: device["driver"] for name, device in all_devices(spec).items()}
    assert drivers == {
        "spare-port0": "pcie-root-port",
        "vga0": "VGA",
        "rng0": "virtio-rng-pci",
        "balloon0": "virtio-balloon-pci",
        "vsock0": "vhost-vsock-pci",
        "panic0": "pvpanic-pci",
        "vmgenid0": "vmgenid",
    }
    assert all_devices(spec)["vsock0"]["guest-cid"] == 7


def test_every_optional_device_on_microvm() -> None:
    spec = MachineSpec(machine="microvm", rng=True, balloon=True, vsock=7, agent=True)
    found = all_devices(spec)
    assert {name: device["driver"] for name, device in found.items()} == {
        "rng0": "virtio-rng-device",
        "balloon0": "virtio-balloon-device",
        "vsock0": "vhost-vsock-device",
        "panic0": "pvpanic",
        "vserial0": "virtio-serial-device",
        "serial0": "isa-serial",
        "agent0": "virtserialport",
    }
    assert not [device for device in found.values() if "addr" in device]


def test_objects_are_made_once_for_all_that_share_them() -> None:
    disks = [Disk(f"{n}", format="raw", iothread="io") for n in range(3)]
    found = list(objects(MachineSpec(disks=disks, rng=True)))
    assert [item["id"] for item in found] == ["ram0", "qk-io-io", "qk-rng0"]


def test_scsi_disks_share_a_controller_unless_their_threads_differ() -> None:
    def scsi(thread: str | None) -> Disk:
        return Disk(f"{thread}{object()}", format="raw", interface="virtio-scsi", iothread=thread)

    found = all_devices(MachineSpec(disks=[scsi(None), scsi("io"), scsi(None)]))
    assert found["scsi0"].get("iothread") is None
    assert found["scsi1"]["iothread"] == "qk-io-io"
    where = [(found[f"disk{n}"]["bus"], found[f"disk{n}"]["scsi-id"]) for n in range(3)]
    assert where == [("scsi0.0", 0), ("scsi1.0", 0), ("scsi0.0", 1)]


def test_memory_that_has_its_place_comes_before_what_qemu_finds_one_for() -> None:
    dimms = [Dimm(size="128MiB"), Dimm(size="128MiB", address=6 * GIB)]
    memory = Memory(maxmem="8GiB", slots=2, dimms=dimms)
    laid = VirtioMem(size="1GiB", address=4 * GIB)
    spec = MachineSpec(memory=memory, devices=[VirtioMem(size="1GiB"), laid], root_ports=2)
    ids = [it["id"] for it in devices(spec, layout_of(spec))]
    order = [ids.index(name) for name in ("dimm1", "vmem1", "dimm0", "vmem0")]
    assert order == sorted(order) and len(ids) == order[-1] + 1
