"""Contradictions between fields, one by one, with their message."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.chardev import Serial
from qmpkit.spec.check import faults_of, type_faults, validate
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import DgramNic, Forward, StreamNic, TapNic, UserNic
from qmpkit.spec.peripherals import VirtioMem

ROOMY = Memory(maxmem="8GiB", slots=1)
CPU_TOPOLOGY = "sockets x cores x threads is {}, which does not make {} processors"


def disk(**fields: Any) -> MachineSpec:
    return MachineSpec(disks=[Disk(**{"file": "a.img", "format": "raw", **fields})])


def two(first: dict[str, Any], second: dict[str, Any]) -> MachineSpec:
    return MachineSpec(
        disks=[
            Disk(**{"file": "a.img", "format": "raw", **first}),
            Disk(**{"file": "b.img", "format": "raw", **second}),
        ]
    )


def user(**forward: Any) -> MachineSpec:
    return MachineSpec(nics=[UserNic(forwards=[Forward(**{"host": 1, "guest": 1, **forward})])])


def microvm(**fields: Any) -> MachineSpec:
    return MachineSpec(machine="microvm", **fields)


CASES: list[tuple[MachineSpec, str]] = [
    (MachineSpec(name="a\nb"), r"name: 'a\nb' holds a character that cannot be printed"),
    (MachineSpec(name=""), "name: a machine needs a name"),
    (
        MachineSpec(arch="mips", machine="virt"),
        "arch: 'mips' is not supported (one of x86_64, aarch64, riscv64)",
    ),
    (MachineSpec(arch="aarch64"), "machine: 'q35' is a board of x86_64, not of aarch64 (virt)"),
    (
        MachineSpec(machine="virt-7.2"),
        "machine: 'virt-7.2' is a board of aarch64 and riscv64, not of x86_64 (q35 or microvm)",
    ),
    (MachineSpec(machine="pc"), "machine: 'pc' is not a machine type (q35 or microvm)"),
    (MachineSpec(machine="q35,smm=off"), "machine: 'q35,smm=off' is not a machine type"),
    (
        MachineSpec(machine="pc-q35-7.2,smm=off"),
        "machine: 'pc-q35-7.2,smm=off' is not a machine type",
    ),
    (
        MachineSpec(machine_options={"memory-backend": "x"}),
        "machine_options.memory-backend: is set by 'memory'",
    ),
    (MachineSpec(machine_options={"a,b": 1}), "machine_options: 'a,b' is not the name"),
    (MachineSpec(uuid="1234"), "uuid: '1234' is not a UUID"),
    (MachineSpec(vmgenid="now"), "vmgenid: 'now' is not a UUID"),
    (MachineSpec(vsock=2), "vsock: a guest's CID is from 3 to 4294967294, not 2"),
    (MachineSpec(run_as=""), "run_as: the user's name is empty"),
    (MachineSpec(env={"A=B": ""}), "env: 'A=B' cannot be the name of a variable"),
    (MachineSpec(env={"": "x"}), "env: '' cannot be the name of a variable"),
    (MachineSpec(firmware=""), "firmware: the path is empty"),
    (MachineSpec(qemu=""), "qemu: the path is empty"),
    (MachineSpec(kernel=Kernel("")), "kernel.image: the path is empty"),
    (MachineSpec(kernel=Kernel("k", initrd="")), "kernel.initrd: the path is empty"),
    (MachineSpec(kernel=Kernel(initrd="i")), "kernel.image: is missing: an initrd is of no use"),
    (MachineSpec(kernel=Kernel("k\0")), "kernel.image: holds a NUL character"),
    (MachineSpec(extra_args=["-x", "a\0"]), "extra_args[1]: holds a NUL character"),
    (MachineSpec(env={"A": "\0"}), "env.A: holds a NUL character"),
    (disk(file="a\0"), "disks[0].file: holds a NUL character"),
    (MachineSpec(cpu=0), "cpu.cpus: a machine has at least one processor, not 0"),
    (MachineSpec(cpu=256), "cpu.cpus: 256 processors are more than the 255 supported"),
    (MachineSpec(cpu=Cpu(1, 256)), "cpu.maxcpus: 256 processors are more than the 255"),
    (MachineSpec(cpu=Cpu(4, 2)), "cpu.maxcpus: 2 is less than the 4 of cpus"),
    (MachineSpec(cpu=Cpu(4, sockets=3)), f"cpu: {CPU_TOPOLOGY.format(3, 4)}"),
    (MachineSpec(cpu=Cpu(4, sockets=1, cores=2, threads=1)), f"cpu: {CPU_TOPOLOGY.format(2, 4)}"),
    (MachineSpec(cpu=Cpu(4, cores=0)), "cpu.cores: must be at least 1, not 0"),
    (MachineSpec(cpu=Cpu(model="max,+x")), "cpu.model: 'max,+x' is not a CPU model"),
    (MachineSpec(cpu=Cpu(flags=["avx"])), "cpu.flags[0]: 'avx' is not '+name', '-name' or"),
    (microvm(cpu=Cpu(1, 2)), "cpu.maxcpus: microvm has no processor hotplug"),
    (MachineSpec(memory="512KiB"), "memory.size: 512KiB is less than 1MiB"),
    (MachineSpec(memory="1028KiB"), "memory.size: 1028KiB is not a multiple of 8KiB"),
    (MachineSpec(memory=Memory(mem_path="")), "memory.mem_path: the path is empty"),
    (MachineSpec(memory=Memory(slots=1)), "memory.maxmem: slots and maxmem are only of use"),
    (MachineSpec(memory=Memory(maxmem="1GiB")), "memory.slots: slots and maxmem are only of use"),
    (
        MachineSpec(memory=Memory("1GiB", maxmem="1GiB", slots=1)),
        "memory.maxmem: 1GiB leaves no room above size",
    ),
    (
        MachineSpec(memory=Memory("1MiB", maxmem="1028KiB", slots=1)),
        "memory.maxmem: 1028KiB is not a multiple of 8KiB",
    ),
    (
        MachineSpec(memory=Memory(maxmem="1GiB", slots=257)),
        "memory.slots: must be from 0 to 256, not 257",
    ),
    (
        MachineSpec(memory=Memory(maxmem="1GiB", slots=1, dimms=[Dimm(size="1MiB")])),
        "memory.dimms[0].size: 1MiB is no multiple of 128MiB",
    ),
    (
        MachineSpec(memory=Memory(dimms=[Dimm(size="128MiB")])),
        "memory.slots: 1 module of memory do not fit in 0 slots (remove one, or start",
    ),
    (
        MachineSpec(memory=Memory(maxmem="1GiB", slots=1, dimms=[Dimm(size="640MiB")])),
        "memory.maxmem: leaves room for 512MiB, and the modules have 640MiB (remove one",
    ),
    (
        MachineSpec(memory=Memory(maxmem="1GiB", slots=1, dimms=[Dimm(size="128MiB", node=1)])),
        "memory.dimms[0].node: there is no node 1 in numa",
    ),
    (
        MachineSpec(memory=Memory(maxmem="1GiB", slots=1, dimms=[Dimm(size="128MiB", id="a b")])),
        "memory.dimms[0].id: 'a b' is not a name QEMU takes",
    ),
    (
        MachineSpec(memory=Memory(deflate_on_oom=True)),
        "memory.deflate_on_oom: is the balloon's, and there is none (balloon = true)",
    ),
    (
        MachineSpec(memory=Memory(mem_path="/ram", free_page_reporting=True), balloon=True),
        "memory.free_page_reporting: would cut what the guest does not use out of '/ram'",
    ),
    (
        MachineSpec(devices=[VirtioMem(size="1GiB")], root_ports=1),
        "devices[0]: there is no room for it beside the RAM",
    ),
    (
        MachineSpec(devices=[VirtioMem(size="1GiB", requested="2GiB")], memory=ROOMY),
        "devices[0].requested: is more than the size, 1GiB",
    ),
    (
        MachineSpec(devices=[VirtioMem(size="1GiB", block="3MiB")], memory=ROOMY),
        "devices[0].block: 3MiB is no power of two from 1MiB on",
    ),
    (
        MachineSpec(devices=[VirtioMem(size="8GiB")], memory=ROOMY),
        "devices[0].size: with it the memory comes to 8704MiB, more than memory.maxmem",
    ),
    (MachineSpec(cpu=Cpu(2, 4, added=[1])), "cpu.added[0]: processor 1 is not between the 2"),
    (MachineSpec(cpu=Cpu(2, 4, added=[4])), "cpu.added[0]: processor 4 is not between the 2"),
    (MachineSpec(cpu=Cpu(2, 4, added=[3, 3])), "cpu.added[1]: processor 3 is in it twice"),
    (
        microvm(memory=Memory(maxmem="1GiB", slots=1)),
        "memory.slots: microvm has no memory hotplug",
    ),
    (disk(id="a b"), "disks[0].id: 'a b' is not a name QEMU takes"),
    (disk(id="d" * 21), f"disks[0].id: '{'d' * 21}' is longer than 20 characters"),
    (disk(node="n" * 32), f"disks[0].node: '{'n' * 32}' is longer than the 31 characters"),
    (disk(node="a,b"), "disks[0].node: 'a,b' is not a name QEMU takes"),
    (disk(file=""), "disks[0].file: the path is empty"),
    (disk(aio="native"), "disks[0].aio: native does not work with cache 'writeback'"),
    (disk(detect_zeroes="unmap", discard=False), "disks[0].detect_zeroes: unmap needs discard"),
    (disk(iothread="a b"), "disks[0].iothread: 'a b' is not a name QEMU takes"),
    (disk(iothread="io", interface="nvme"), "disks[0].iothread: nvme cannot use an iothread"),
    (disk(boot=-1), "disks[0].boot: counts from 0, not from -1"),
    (disk(bus="x", interface="cdrom"), "disks[0].bus: cdrom does not sit in a root port"),
    (disk(serial="é"), "disks[0].serial: 'é' is not printable ASCII"),
    (disk(serial=""), "disks[0].serial: '' is not printable ASCII"),
    (disk(serial="s" * 21), "disks[0].serial: 'sssssssssssssssssssss' is longer than the 20"),
    (disk(make="1KiB", readonly=True), "disks[0].make: an image that is only read"),
    (disk(make="1GiB", interface="cdrom"), "disks[0].make: an image that is only read"),
    (disk(make="1GiB", driver="host_device"), "disks[0].make: a block device of the host cannot"),
    (disk(make=513), "disks[0].make: 513B is not a whole number of 512-byte sectors"),
    (disk(make=0), "disks[0].make: 0B is not a whole number of 512-byte sectors"),
    (disk(make=Overlay("b", format="raw")), "disks[0].format: an overlay is qcow2, not raw"),
    (
        disk(format="qcow2", make=Overlay("", format="raw")),
        "disks[0].make.file: the path is empty",
    ),
    (
        disk(format="qcow2", make=Overlay("a.img", format="raw")),
        "disks[0].make.file: an image cannot be an overlay of itself",
    ),
    (two({}, {"file": "a.img"}), "disks[1].file: 'a.img' is already the image of disks[0]"),
    (
        two({"node": "n"}, {"node": "n"}),
        "disks[1].node: node name 'n' is already used by disks[0]",
    ),
    (
        two({}, {"node": "qk-disk0"}),
        "disks[1].node: node name 'qk-disk0' is already used by disks[0]",
    ),
    (two({"boot": 1}, {"boot": 1}), "disks[1].boot: 1 is already the place of disks[0].boot"),
    (
        attrs.evolve(disk(id="a"), nics=[UserNic(id="a")]),
        "nics[0].id: 'a' is already the name of disks[0].id",
    ),
    (attrs.evolve(disk(id="rng0"), rng=True), "disks[0].id: 'rng0' is already the name of rng"),
    (disk(id="serial0"), "serials[0].name: 'serial0' is already the name of disks[0].id"),
    (MachineSpec(serials=["a,b"]), "serials[0].name: 'a,b' is not a name QEMU takes"),
    (MachineSpec(serials=["qmp"]), "serials[0].name: 'qmp' is the name of another channel"),
    (MachineSpec(serials=5), "serials: q35 has 4 serial ports"),
    (
        MachineSpec(serials=[Serial(f"hvc{n}", "virtio") for n in range(31)]),
        "serials: a virtio controller has room for 30 consoles",
    ),
    (MachineSpec(nics=[UserNic(mac="52:54:00")]), "nics[0].mac: '52:54:00' is not a MAC address"),
    (
        MachineSpec(nics=[UserNic(mac="53:54:00:00:00:00")]),
        "nics[0].mac: '53:54:00:00:00:00' is a group's address",
    ),
    (
        MachineSpec(nics=[UserNic(mac="52:54:00:00:00:AA"), UserNic(mac="52:54:00:00:00:aa")]),
        "nics[1].mac: '52:54:00:00:00:aa' is already the address of nics[0]",
    ),
    (MachineSpec(nics=[UserNic(boot=-1)]), "nics[0].boot: counts from 0, not from -1"),
    (MachineSpec(nics=[UserNic(net="10.0.2.0")]), ""),
    (MachineSpec(nics=[UserNic(net="net")]), "nics[0].net: 'net' is not an IPv4 network"),
    (user(host=65536), "nics[0].forwards[0].host: 65536 is not a port"),
    (user(guest=0), "nics[0].forwards[0].guest: 0 is not a port"),
    (user(address="localhost"), "nics[0].forwards[0].address: 'localhost' is not an IPv4"),
    (user(guest_address="x"), "nics[0].forwards[0].guest_address: 'x' is not an IPv4"),
    (
        MachineSpec(nics=[UserNic(forwards=[Forward(22, 1), Forward(22, 2)])]),
        "nics[0].forwards[1].host: port 22 is already forwarded by nics[0].forwards[0]",
    ),
    (MachineSpec(nics=[TapNic(ifname="a/b")]), "nics[0].ifname: 'a/b' is not the name of a"),
    (MachineSpec(nics=[TapNic(ifname="t" * 16)]), "nics[0].ifname: 'tttttttttttttttt' is not"),
    (MachineSpec(nics=[TapNic(ifname="t", queues=0)]), "nics[0].queues: must be from 1 to 256"),
    (
        MachineSpec(nics=[TapNic(ifname="t", queues=2, model="e1000e")]),
        "nics[0].queues: e1000e has one queue",
    ),
    (MachineSpec(nics=[StreamNic(address="here")]), "nics[0].address: 'here' is not an address"),
    (
        MachineSpec(nics=[StreamNic(address="unix:")]),
        "nics[0].address: a socket's path has 1 to 107 bytes",
    ),
    (
        MachineSpec(nics=[DgramNic(local="unix:/a")]),
        "nics[0].remote: is missing: datagrams need somewhere to go",
    ),
    (microvm(root_ports=1), "root_ports: microvm has no PCI (leave root_ports out)"),
    (microvm(display="std"), "display: microvm has no VGA card"),
    (microvm(vmgenid="auto"), "vmgenid: microvm does not show it to its guest"),
    (microvm(nics=[UserNic(model="e1000e")]), "nics[0].model: microvm has no bus for e1000e"),
    (
        attrs.evolve(disk(interface="cdrom"), machine="microvm"),
        'disks[0].interface: microvm has no bus for cdrom (interface = "scsi-cdrom")',
    ),
    (
        attrs.evolve(disk(interface="nvme"), machine="microvm"),
        'disks[0].interface: microvm has no bus for nvme (interface = "virtio-blk")',
    ),
]


@pytest.mark.parametrize(("spec", "message"), CASES, ids=[message[:60] for _, message in CASES])
def test_one_fault_one_message(spec: MachineSpec, message: str) -> None:
    found = [str(fault) for fault in faults_of(spec)]
    assert len(found) == (1 if message else 0), found
    assert all(fault.startswith(message) for fault in found)


def test_two_disks_with_one_id_share_the_device_and_both_nodes() -> None:
    with pytest.raises(SpecInvalid) as caught:
        validate(two({"id": "data"}, {"id": "data"}))
    assert [str(fault) for fault in caught.value.faults] == [
        "disks[1].id: 'data' is already the name of disks[0].id",
        "disks[1].id: node name 'qk-data-file' is already used by disks[0]",
        "disks[1].id: node name 'qk-data' is already used by disks[0]",
    ]
    assert str(caught.value).startswith("machine 'vm': 3 faults:\n")


def test_two_readers_may_share_an_image() -> None:
    assert faults_of(two({"readonly": True}, {"file": "a.img", "interface": "cdrom"})) == ()


def test_a_machine_written_in_python_is_checked_like_a_file() -> None:
    spec = MachineSpec(
        name=5,  # type: ignore[arg-type]
        disks=[Disk("a.img", format="qcov2")],  # type: ignore[arg-type]
        agent="yes",  # type: ignore[arg-type]
    )
    with pytest.raises(SpecInvalid) as caught:
        validate(spec)
    assert [str(fault) for fault in caught.value.faults] == [
        "name: must be a text, not a number: 5",
        "disks[0].format: must be one of 'raw', 'qcow2', 'luks', not 'qcov2' "
        "(did you mean 'qcow2'?)",
        "agent: must be true or false, not a text: 'yes'",
    ]


def test_what_is_no_machine_at_all_is_said_so() -> None:
    assert [str(fault) for fault in type_faults("tiny")] == [
        "a machine is a MachineSpec, not 'tiny' (load_profile reads one from a file)"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"launcher": "nice -n 5"}, "launcher: must be a list, not 'nice -n 5' ("),
        ({"extra_args": "-no-hpet"}, "extra_args: must be a list, not '-no-hpet' ("),
        ({"disks": "a.img"}, "disks: must be a list, not 'a.img' ("),
        ({"disks": ["a.img"]}, "disks[0]: cannot be 'a.img' ("),
        ({"disks": Disk("a.img", format="raw")}, "disks: must be a list, not Disk("),
        ({"nics": [{"kind": "user"}]}, "nics[0]: cannot be {'kind': 'user'} (UserNic())"),
        ({"serials": "com1"}, "serials: must be a list, not 'com1' ("),
        ({"serials": -1}, "serials: cannot be -1 ("),
        ({"serials": True}, "serials: cannot be True ("),
        ({"serials": [1]}, "serials[0]: cannot be 1 ("),
        ({"kernel": "vmlinuz"}, "kernel: cannot be 'vmlinuz' (Kernel("),
        ({"env": ["A=1"]}, "env: must be a dict, not ['A=1']"),
        ({"machine_options": ["hpet=off"]}, "machine_options: must be a dict, not ['hpet=off']"),
    ],
)
def test_python_values_that_would_turn_into_nonsense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        MachineSpec(**fields)
    assert str(caught.value).startswith(message)


def test_parts_of_parts_are_looked_at_too() -> None:
    with pytest.raises(SpecInvalid, match=r"forwards\[0\]: cannot be 22 \(Forward"):
        UserNic(forwards=[22])  # type: ignore[list-item]
    with pytest.raises(SpecInvalid, match=r"forwards\[1\]: 'ssh' is not HOSTPORT:GUESTPORT \(F"):
        UserNic(forwards=["2222:22", "ssh"])
    with pytest.raises(SpecInvalid, match=r"cpu\.flags: must be a list, not '\+x2apic'"):
        Cpu(flags="+x2apic")


@pytest.mark.parametrize(("name", "what"), [("b\udcff.img", "not UTF-8"), ("b\uffff", "U\\+FFFF")])
def test_names_that_qemus_json_cannot_hold(name: str, what: str) -> None:
    with pytest.raises(SpecInvalid, match=rf"disks\[0\]\.file: .*{what}"):
        validate(MachineSpec(disks=[Disk(name, format="raw")]))
    # A kernel's path is an argument of its own, of any bytes.
    validate(MachineSpec(kernel=Kernel(name)))


def test_serial_kinds_are_named() -> None:
    with pytest.raises(SpecInvalid, match=r"serials\[0\]\.kind: must be one of 'isa', 'virtio'"):
        validate(MachineSpec(serials=[Serial("s", "usb")]))  # type: ignore[arg-type]
