"""What a machine is given of its host: written, checked, and on QEMU's command line."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.spec.argv import render
from qmpkit.spec.block import Disk
from qmpkit.spec.check import faults_of
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.data import spec_from_toml, spec_to_toml
from qmpkit.spec.facts import Facts
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.numa import NumaNode
from qmpkit.spec.number_list import numbers_of, text_of
from qmpkit.spec.resources import IoMax, Resources, cgroup_files, controllers
from qmpkit.spec.sizes import GIB
from tests.unit.spec.test_argv import after, argv, fds

TEXT = """
schema = 1
name = "fast"

[cpu]
cpus = 4
pin = ["2", "3", "4-5"]

[memory]
size = "2GiB"
huge_pages = "2MiB"
prealloc = true
prealloc_threads = 4
merge = false

[[numa]]
cpus = "0-1"
memory = "1GiB"
host_nodes = "0"
distances = { 1 = 21 }

[[numa]]
cpus = "2-3"
memory = "1GiB"
host_nodes = "0-1"
policy = "interleave"

[[disks]]
file = "/a"
format = "raw"
iothreads = ["io0", "io1"]
queues = 4
aio = "auto"

[resources]
emulator = "0-1"
iothreads = { io0 = "6", io1 = "7" }
policy = "batch"
nice = 5
cpu_max = 2.5
cpu_weight = 200
memory_max = "3GiB"
memory_high = "2560MiB"
pids_max = 200
io_max = [{ device = "8:0", wbps = 1000000 }]
"""


@given(st.sets(st.integers(0, 3000)))
def test_a_list_of_numbers_and_back(numbers: set[int]) -> None:
    assert set(numbers_of(text_of(numbers))) == numbers


@pytest.mark.parametrize("text", ["a", "3-1", "1,,2", "-1", "1-", "٣"])
def test_no_list_of_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list of numbers"):
        numbers_of(text)


def test_a_profile_of_it_and_back() -> None:
    spec = spec_from_toml(TEXT)
    assert faults_of(spec) == ()
    assert spec.cpu.pin == ("2", "3", "4-5")
    assert spec.resources.memory_max == 3 * GIB
    assert spec.numa[0].distances == {"1": 21}
    assert spec_from_toml(spec_to_toml(spec)) == spec
    assert spec_from_toml(spec_to_toml(spec, defaults=False)) == spec


def objects(words: list[str]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in after(words, "-object")]


def test_it_is_on_the_command_line() -> None:
    words = argv(spec_from_toml(TEXT))
    memory = {"hugetlb": True, "hugetlbsize": 2 << 20, "prealloc": True, "prealloc-threads": 4}
    common = {"qom-type": "memory-backend-memfd", "size": GIB, "share": True, **memory}
    assert objects(words)[:2] == [
        {**common, "id": "ram0", "host-nodes": [0], "policy": "bind", "merge": False},
        {**common, "id": "ram1", "host-nodes": [0, 1], "policy": "interleave", "merge": False},
    ]
    assert after(words, "-numa") == [
        "node,nodeid=0,cpus=0-1,memdev=ram0",
        "node,nodeid=1,cpus=2-3,memdev=ram1",
        "dist,src=0,dst=1,val=21",
        "dist,src=1,dst=0,val=21",
    ]
    assert after(words, "-machine") == ["q35"]  # with nodes it has no backend of its own
    disk = next(json.loads(word) for word in words if '"disk0"' in word and "driver" in word)
    assert disk["iothread-vq-mapping"] == [{"iothread": "qk-io-io0"}, {"iothread": "qk-io-io1"}]
    assert disk["num-queues"] == 4
    assert [it["id"] for it in objects(words)[2:]] == ["qk-io-io0", "qk-io-io1"]


def test_pins_and_limits_are_no_part_of_the_command_line() -> None:
    spec = MachineSpec(cpu=Cpu(2))
    more = attrs.evolve(
        spec,
        cpu=Cpu(2, pin="auto"),
        resources=Resources(emulator="0", policy="fifo", priority=1, cpu_max=1, pids_max=9),
    )
    assert argv(more) == argv(spec)


def test_memory_that_is_locked_and_hugetlbfs() -> None:
    memory = Memory("1GiB", huge_pages="1GiB", mem_path="/dev/hugepages", lock=True, dump=False)
    words = argv(MachineSpec(memory=memory))
    assert after(words, "-overcommit") == ["mem-lock=on"]
    assert objects(words)[0] == {
        "qom-type": "memory-backend-file",
        "id": "ram0",
        "size": GIB,
        "mem-path": "/dev/hugepages",
        "share": False,
        "dump": False,
    }


def test_several_iothreads_are_for_kvm_on_a_microvm() -> None:
    disk = Disk("/a", format="raw", iothreads=["a", "b"])
    spec = MachineSpec(machine="microvm", disks=[disk], panic=False)
    with pytest.raises(SpecInvalid, match="microvm has iothreads only under KVM"):
        render(spec, Facts(accel="tcg"), fds(spec))


NODES = [NumaNode(cpus="0", memory="256MiB"), NumaNode(cpus="1", memory="256MiB")]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (MachineSpec(cpu=Cpu(2, pin="x")), "cpu.pin: 'x' is not a list of numbers"),
        (MachineSpec(cpu=Cpu(1, pin=["0", "1"])), "cpu.pin: 2 places are more than the 1"),
        (MachineSpec(cpu=Cpu(2, pin=["0", "b"])), "cpu.pin[1]: 'b' is not a list"),
        (
            MachineSpec(resources=Resources(iothreads={"io": "1"})),
            "resources.iothreads.io: no disk has an iothread of that name (no disk has one)",
        ),
        (MachineSpec(resources=Resources(emulator="")), "resources.emulator: the list is empty"),
        (
            MachineSpec(resources=Resources(policy="rr")),
            "resources.priority: rr takes one from 1 to 99, not 0",
        ),
        (
            MachineSpec(resources=Resources(priority=3)),
            'resources.priority: is of use with policy "fifo" or "rr" only',
        ),
        (MachineSpec(resources=Resources(nice=20)), "resources.nice: is from -20 to 19, not 20"),
        (MachineSpec(resources=Resources(cpu_max=0)), "resources.cpu_max: is a number of"),
        (MachineSpec(resources=Resources(cpu_weight=0)), "resources.cpu_weight: is from 1"),
        (MachineSpec(resources=Resources(pids_max=0)), "resources.pids_max: must be at least 1"),
        (
            MachineSpec(resources=Resources(memory_max="1GiB", memory_high="2GiB")),
            "resources.memory_high: is above memory_max",
        ),
        (
            MachineSpec(resources=Resources(io_max=[IoMax(device="sda", rbps=0)])),
            "resources.io_max[0].device: 'sda' is no device",
        ),
        (
            MachineSpec(resources=Resources(io_max=[IoMax(device="8:0")])),
            "resources.io_max[0]: limits nothing",
        ),
        (MachineSpec(memory=Memory("1GiB", huge_pages=3)), "memory.huge_pages: 3B is no size"),
        (
            MachineSpec(memory=Memory("3MiB", huge_pages="2MiB")),
            "memory.size: 3MiB is not a whole number of pages of 2MiB",
        ),
        (
            MachineSpec(memory=Memory(prealloc_threads=2)),
            "memory.prealloc_threads: are of use with prealloc = true only",
        ),
        (
            MachineSpec(memory=Memory(host_nodes="0-1", policy="preferred")),
            "memory.host_nodes: only one node can be preferred",
        ),
        (
            MachineSpec(cpu=Cpu(3), numa=NODES),
            "numa: processor 2 is in no node (each of maxcpus is in one)",
        ),
        (
            MachineSpec(cpu=Cpu(1), numa=NODES),
            "numa[1].cpus: there is no processor 1: they are 0 to 0",
        ),
        (
            MachineSpec(cpu=Cpu(2), numa=[NODES[0], attrs.evolve(NODES[1], cpus="0-1")]),
            "numa[1].cpus: processor 0 is already in numa[0]",
        ),
        (
            MachineSpec(cpu=Cpu(2), memory="1GiB", numa=NODES),
            "memory.size: is 1GiB, and the nodes have 512MiB together",
        ),
        (
            MachineSpec(cpu=Cpu(2), numa=[attrs.evolve(NODES[0], distances={"0": 20}), NODES[1]]),
            "numa[0].distances.0: there is no other node of that number",
        ),
        (
            MachineSpec(cpu=Cpu(2), numa=[attrs.evolve(NODES[0], distances={"1": 10}), NODES[1]]),
            "numa[0].distances.1: is from 11 to 254, not 10",
        ),
        (
            MachineSpec(cpu=Cpu(2), memory=Memory(host_nodes="0"), numa=NODES),
            "memory.host_nodes: with numa each node has its own",
        ),
        (
            MachineSpec(disks=[Disk("a", format="raw", iothread="a", iothreads=["b"])]),
            "disks[0].iothreads: it has either iothread or iothreads",
        ),
        (
            MachineSpec(disks=[Disk("a", format="raw", iothreads=["b", "b"])]),
            "disks[0].iothreads: the same thread is named twice",
        ),
        (
            MachineSpec(disks=[Disk("a", format="raw", interface="nvme", queues=2)]),
            "disks[0].queues: nvme has no queues to be counted",
        ),
        (
            MachineSpec(disks=[Disk("a", format="raw", iothreads=["a", "b"], queues=1)]),
            "disks[0].queues: must be from 2 to 256, not 1",
        ),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_told(spec: MachineSpec, fault: str) -> None:
    assert any(str(found).startswith(fault) for found in faults_of(spec)), faults_of(spec)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Cpu(pin=[1]),  # type: ignore[list-item]
        lambda: MachineSpec(resources={"nice": 1}),  # type: ignore[arg-type]
        lambda: MachineSpec(numa="0"),  # type: ignore[arg-type]
        lambda: Resources(memory_max="1 GB"),
    ],
)
def test_nonsense_is_refused_where_it_is_written(build: Any) -> None:
    with pytest.raises(SpecInvalid):
        build()


def test_a_pin_of_a_wrong_kind_in_a_file() -> None:
    with pytest.raises(SpecInvalid, match=r"cpu\.pin: must be a list, not a number: 3"):
        spec_from_toml("schema = 1\n[cpu]\npin = 3\n")


def test_the_files_of_a_control_group() -> None:
    resources = Resources(cpu_max=1.5, memory_max="1GiB")
    assert controllers(resources) == ("cpu", "memory")
    assert cgroup_files(resources) == {
        "cpu.max": "150000 100000",
        "cpu.weight": "100",
        "memory.high": "max",
        "memory.max": str(GIB),
    }
    assert controllers(Resources(nice=3, policy="batch", emulator="0")) == ()
