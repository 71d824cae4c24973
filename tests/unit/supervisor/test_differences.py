"""Disks and devices as a spec has them, against those that QEMU tells of."""

from __future__ import annotations

from typing import Any

import pytest

from qmpkit import Cpu, Dimm, Disk, MachineSpec, Memory, Rng, UserNic
from qmpkit.supervisor.differences import device_differences, disk_differences

SPEC = MachineSpec(
    name="web",
    disks=[
        Disk(file="/a.qcow2", format="qcow2"),
        Disk(file="/b.raw", format="raw", interface="virtio-scsi"),
    ],
)


def block(qdev: str, node: str, file: str) -> dict[str, Any]:
    return {"device": "", "qdev": qdev, "inserted": {"node-name": node, "file": file, "ro": False}}


AS_IT_IS = [
    block("/machine/peripheral/disk0/virtio-backend", "qk-disk0", "/a.qcow2"),
    block("disk1", "qk-disk1", "/b.raw"),
    block("/machine/system.flash0", "pflash", "/usr/share/OVMF/OVMF_CODE.fd"),
]


def test_all_as_it_is_to_be() -> None:
    assert list(disk_differences(SPEC, AS_IT_IS)) == []


def test_a_drive_is_empty_where_its_spec_says_so() -> None:
    spec = MachineSpec(name="web", disks=[Disk(format="raw", interface="cdrom")])
    empty = {"device": "", "qdev": "disk0"}
    assert list(disk_differences(spec, [empty])) == []
    (told,) = disk_differences(spec, [block("disk0", "qk-disk0-1", "/a.iso")])
    assert told == "drive 'disk0' has /a.iso in it, and is empty by its spec"


@pytest.mark.parametrize(
    ("number", "changed", "told"),
    [
        (
            0,
            block("/machine/peripheral/disk0/virtio-backend", "snap", "/snap.qcow2"),
            "disk 'disk0' is on node 'snap' (/snap.qcow2), and its spec says 'qk-disk0' (/a.qcow2)",
        ),
        (1, block("disk1", "qk-disk1", "/moved.raw"), "disk 'disk1' is on node 'qk-disk1' (/moved"),
        (1, {"device": "", "qdev": "disk1"}, "disk 'disk1' is empty, and its spec says"),
        (1, block("other", "n", "/b.raw"), "disk 'disk1' (/b.raw) is not there"),
    ],
)
def test_each_difference_is_told(number: int, changed: dict[str, Any], told: str) -> None:
    blocks = [*AS_IT_IS]
    blocks[number] = changed
    assert next(iter(disk_differences(SPEC, blocks))).startswith(told)


def test_one_that_was_plugged_is_told_and_an_empty_drive_is_not() -> None:
    more = [block("usb1", "n", "/stick.img"), {"device": "", "qdev": "cd1"}]
    (told,) = disk_differences(SPEC, [*AS_IT_IS, *more])
    assert told == "disk 'usb1' (/stick.img) is there, and its spec does not say so"


def test_each_device_that_is_not_there_is_told() -> None:
    memory = Memory(maxmem="1GiB", slots=1, dimms=[Dimm(size="128MiB")])
    spec = MachineSpec(nics=[UserNic()], devices=[Rng()], memory=memory, cpu=Cpu(1, 4, added=[2]))
    named = ("nic0", "rng1", "dimm0", "cpu2")
    assert list(device_differences(spec, named)) == []
    kinds = ("NIC", "device", "memory", "processor")
    assert list(device_differences(spec, ())) == [
        f"{kind} {name!r} is not there, and its spec says that it is"
        for kind, name in zip(kinds, named, strict=True)
    ]
