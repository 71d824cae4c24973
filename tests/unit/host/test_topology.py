"""The host's processors and nodes, and who sits on them, on recorded trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.host.sitting import occupied, sittings
from qmpkit.host.topology import CacheLevel, HugePages, topology
from qmpkit.spec.sizes import GIB, MIB
from tests.unit.host.trees import qemu_process, two_nodes, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return two_nodes(tmp_path, huge=(100, 20))


def test_two_sockets_with_threads(root: Path) -> None:
    host = topology(root)
    assert [node.processors for node in host.nodes] == [
        (0, 1, 2, 3, 8, 9, 10, 11),
        (4, 5, 6, 7, 12, 13, 14, 15),
    ]
    assert host.cores[0] == (0, 8)
    assert len(host.cores) == 8
    assert {processor.socket for processor in host.processors} == {0, 1}
    assert host.nodes[1].distances == (21, 10)
    assert host.nodes[0].memory == 64 * GIB
    assert host.nodes[0].free == 32 * GIB + MIB
    assert host.nodes[1].huge_pages == (HugePages(2 * MIB, 20, 20),)
    assert host.pool(2 * MIB) == HugePages(2 * MIB, 120, 120)
    assert host.pool(GIB) is None
    assert host.ksm is True
    assert CacheLevel(3, "Unified", 32 * MIB, host.nodes[0].processors) in host.caches
    assert len(host.caches) == 2


def test_a_kernel_that_shows_no_nodes_is_one_node(tmp_path: Path) -> None:
    write(tmp_path, "sys/devices/system/cpu/online", "0-1\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n")
    host = topology(tmp_path)
    assert [node.processors for node in host.nodes] == [(0, 1)]
    assert (host.nodes[0].memory, host.nodes[0].free) == (2 * MIB, MIB)
    assert host.allowed == (0, 1)
    assert host.ksm is None


def test_processors_that_we_may_not_use(root: Path) -> None:
    write(root, "proc/self/status", "Cpus_allowed_list:\t0-1,8-9\n")
    assert topology(root).allowed == (0, 1, 8, 9)


def test_this_host() -> None:
    host = topology()
    assert host.processors
    assert sum(node.memory for node in host.nodes) > 0
    assert set(host.allowed) <= {processor.number for processor in host.processors}


def test_who_sits_where(root: Path) -> None:
    qemu_process(root, 100, "a,,b", ["2", "3"], rest="0-1")
    qemu_process(root, 200, "free", ["0-15"], rest="0-15")
    write(root, "proc/300/cmdline", "/bin/sh\0")
    found = sittings(root)
    assert [it.machine for it in found] == ["a,b", "free"]
    assert [thread.allowed for thread in found[0].vcpus] == [(2,), (3,)]
    assert [thread.name for thread in found[0].threads if thread.vcpu is None] == [
        "qemu-system-x86",
        "IO io-a",
    ]
    # One that may run anywhere takes nobody's place.
    assert occupied(found, 16) == {2: 1, 3: 1}
