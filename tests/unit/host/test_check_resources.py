"""What pins, huge pages, nodes and limits need of a host, told before anything is started."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import attrs
import pytest

from qmpkit.host.aio import best_aio
from qmpkit.host.check_resources import check_resources
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.numa import NumaNode
from qmpkit.spec.resources import Resources
from qmpkit.spec.sizes import MIB
from tests.unit.host.trees import two_nodes, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return two_nodes(tmp_path, huge=(100, 20))


def told(spec: MachineSpec, root: Path) -> list[str]:
    return [str(problem.fault) for problem in check_resources(spec, root)]


def test_nothing_asked_nothing_looked_at(tmp_path: Path) -> None:
    assert told(MachineSpec(), tmp_path) == []


def test_processors_that_are_not_there(root: Path) -> None:
    spec = MachineSpec(cpu=Cpu(2, pin=["3", "16"]), resources=Resources(emulator="20-21"))
    assert told(spec, root) == [
        "cpu.pin[1]: this host has no processor 16 (it has 0-15)",
        "resources.emulator: this host has no processor 20-21 (it has 0-15)",
    ]
    write(root, "proc/self/status", "Cpus_allowed_list:\t0-3\n")
    assert told(attrs.evolve(spec, cpu=Cpu(pin="8-9"), resources=Resources()), root) == [
        "cpu.pin: we may not use the processors 8-9 (we may use 0-3)"
    ]


def test_nodes_that_are_not_there(root: Path) -> None:
    nodes = [NumaNode(cpus="0", memory="512MiB", host_nodes="0-2")]
    assert told(MachineSpec(numa=nodes), root) == [
        "numa[0].host_nodes: this host has no NUMA node 2 (it has 0-1)"
    ]


def huge(size: str, **more: object) -> MachineSpec:
    return MachineSpec(memory=Memory(size, huge_pages="2MiB", **more))  # type: ignore[arg-type]


def test_huge_pages_that_are_free(root: Path) -> None:
    assert told(huge("240MiB"), root) == []
    assert told(huge("242MiB"), root) == [
        "memory.huge_pages: 1 more free huge pages of 2MiB are needed "
        "(echo 121 | sudo tee /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)"
    ]
    write(root, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages", "5")
    assert told(huge("242MiB"), root) == []


def test_huge_pages_of_a_node(root: Path) -> None:
    assert told(huge("40MiB", host_nodes="1"), root) == []
    (fault,) = told(huge("42MiB", host_nodes="1"), root)
    assert "1 more free huge pages of 2MiB are needed on its nodes" in fault
    assert told(huge("42MiB", host_nodes="1", policy="preferred"), root) == []


def test_pages_of_a_size_that_is_not_there(root: Path) -> None:
    spec = MachineSpec(memory=Memory("1GiB", huge_pages="1GiB"))
    assert told(spec, root) == [
        "memory.huge_pages: this host has no huge pages of 1GiB (it has 2MiB)"
    ]


@pytest.mark.parametrize(
    ("mounts", "fault"),
    [
        ("none /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n", ""),
        ("none / ext4 rw 0 0\n", "'/dev/hugepages/x' is not in a hugetlbfs"),
        (
            "none /dev/hugepages hugetlbfs rw,pagesize=1024M 0 0\n",
            "/dev/hugepages has pages of 1024M, not 2MiB",
        ),
    ],
)
def test_a_path_is_in_a_hugetlbfs_of_that_size(root: Path, mounts: str, fault: str) -> None:
    write(root, "proc/mounts", mounts)
    found = told(huge("2MiB", mem_path="/dev/hugepages/x"), root)
    assert [fault in text for text in found] == [True] * bool(fault)


def test_locked_memory_is_within_the_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = MachineSpec(memory=Memory("512MiB", lock=True))
    write(root, "proc/self/status", "CapEff:\t0000000000000000\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 * MIB, 8 * MIB))
    (fault,) = told(spec, root)
    assert fault.startswith("memory.lock: we may lock 8MiB, the machine takes 768MiB")
    write(root, "proc/self/status", "CapEff:\t000001ffffffffff\n")
    assert told(spec, root) == []


def test_priorities_need_a_right(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = MachineSpec(resources=Resources(policy="fifo", priority=5, nice=-5))
    write(root, "proc/self/status", "CapEff:\t0000000000000000\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 0))
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    assert [fault.split(" (")[0] for fault in told(spec, root)] == [
        "resources.policy: we may use real-time priorities up to 0, not 5",
        "resources.nice: we may not go below niceness 0",
    ]
    write(root, "proc/self/status", "CapEff:\t000001ffffffffff\n")
    assert told(spec, root) == []


def test_limits_need_a_control_group(root: Path) -> None:
    spec = MachineSpec(resources=Resources(cpu_max=1.5))
    assert told(spec, root) == [
        "resources: cgroup v2 is not mounted, or hidden from us (boot with "
        "systemd.unified_cgroup_hierarchy=1; in a container: --cgroupns=private)"
    ]


@pytest.mark.parametrize(
    ("cache", "offered", "ring", "best"),
    [
        ("writeback", {"threads", "native", "io_uring"}, True, "io_uring"),
        ("writeback", {"threads", "native", "io_uring"}, False, "threads"),
        ("none", {"threads", "native", "io_uring"}, False, "native"),
        ("none", {"threads", "native"}, True, "native"),
        ("none", {"threads"}, True, "threads"),
    ],
)
def test_the_fastest_way_of_io_that_works(
    cache: str, offered: set[str], ring: bool, best: str
) -> None:
    assert best_aio(cache, offered, ring=ring) == best  # type: ignore[arg-type]
