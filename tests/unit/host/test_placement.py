"""`cpu.pin = "auto"`: which processors a machine gets, on a host of two nodes."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.errors import HostLacks
from qmpkit.host.placement import Part, place, placed
from qmpkit.host.topology import HostNode, Processor, Topology, topology
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.numa import NumaNode
from qmpkit.spec.sizes import GIB, MIB
from tests.unit.host.trees import two_nodes


@pytest.fixture
def host(tmp_path: Path) -> Topology:
    return topology(two_nodes(tmp_path, huge=(100, 20)))


def part(count: int, memory: int = GIB, **more: object) -> Part:
    return attrs.evolve(Part(tuple(range(count)), memory), **more)  # type: ignore[arg-type]


def test_each_vcpu_has_a_core_of_its_own_while_there_are_some(host: Topology) -> None:
    found = place(host, {}, [part(4)])
    assert list(found.vcpus.values()) == [0, 1, 2, 3]
    assert found.nodes == ((0,),)
    assert found.emulator == (8, 9, 10, 11)


def test_a_guest_with_threads_gets_whole_cores(host: Topology) -> None:
    assert list(place(host, {}, [part(4)], siblings=True).vcpus.values()) == [0, 8, 1, 9]


def test_the_emptier_node_is_taken(host: Topology) -> None:
    found = place(host, {0: 1, 1: 1}, [part(2)])
    assert list(found.vcpus.values()) == [4, 5]
    # and in it the processors that nobody has
    found = place(host, {4: 1, 5: 1, **dict.fromkeys(range(4), 2)}, [part(2)])
    assert list(found.vcpus.values()) == [6, 7]


def test_who_fills_a_node_shares_it_with_qemu(host: Topology) -> None:
    assert place(host, {}, [part(8)]).emulator == host.nodes[0].processors


def test_nothing_is_split_over_nodes(host: Topology) -> None:
    with pytest.raises(HostLacks) as lacks:
        place(host, {}, [part(9)])
    assert "node 0 has 8 processors for us, 9 are wanted; node 1 has" in str(lacks.value)
    with pytest.raises(HostLacks, match="32769MiB free, 40GiB are wanted"):
        place(host, {}, [part(1, 40 * GIB)])


def test_huge_pages_are_looked_for_where_they_are(host: Topology) -> None:
    found = place(host, {0: 1}, [part(1, 64 * MIB, huge_pages=2 * MIB)])
    assert found.nodes == ((0,),)  # node 1, which is emptier, has 40 MiB of them


def test_only_processors_that_we_may_use(host: Topology) -> None:
    narrow = attrs.evolve(host, allowed=(5, 6))
    assert set(place(narrow, {}, [part(2)]).vcpus.values()) == {5, 6}


def test_a_spec_gets_processors_and_its_memory_beside_them(host: Topology) -> None:
    spec = MachineSpec(cpu=Cpu(2, pin="auto"), memory="1GiB")
    done = placed(spec, host, {0: 1})
    assert done.cpu.pin == ("4", "5")
    assert done.resources.emulator == "6-7,12-15"
    assert (done.memory.host_nodes, done.memory.policy) == ("1", "preferred")
    one = attrs.evolve(host, nodes=host.nodes[:1])
    assert placed(spec, one, {}).memory.host_nodes is None
    assert placed(attrs.evolve(spec, cpu=Cpu(2)), host, {}).cpu.pin is None


def test_the_guests_nodes_are_on_nodes_of_the_host(host: Topology) -> None:
    nodes = [
        NumaNode(cpus="0-1", memory="1GiB", host_nodes="1"),
        NumaNode(cpus="2-3", memory="1GiB"),
    ]
    spec = MachineSpec(cpu=Cpu(4, pin="auto"), memory="2GiB", numa=nodes)
    done = placed(spec, host, {})
    assert done.cpu.pin == ("4", "5", "0", "1")
    assert [node.host_nodes for node in done.numa] == ["1", "0"]
    assert [node.policy for node in done.numa] == ["bind", "preferred"]


def test_what_the_user_says_of_the_memory_stays(host: Topology) -> None:
    memory = Memory("1GiB", host_nodes="0", policy="bind")
    done = placed(MachineSpec(cpu=Cpu(2, pin="auto"), memory=memory), host, {0: 5, 1: 5})
    assert done.memory == memory
    assert set(done.cpu.pin or ()) <= {str(cpu) for cpu in host.nodes[0].processors}


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.integers(1, 6),
    st.dictionaries(st.integers(0, 40), st.integers(0, 4)),
    st.booleans(),
)
def test_whatever_is_placed_is_on_one_node_and_nowhere_twice(
    wanted: list[int], cores: int, taken: dict[int, int], siblings: bool
) -> None:
    host = made_up(cores)
    start = 0
    parts = []
    for count in wanted:
        parts.append(Part(tuple(range(start, start + count)), GIB))
        start += count
    try:
        found = place(host, taken, parts, siblings=siblings)
    except HostLacks:
        assert max(wanted) > 2 * cores or GIB * len(wanted) > 4 * GIB
        return
    assert set(found.vcpus) == set(range(start))
    for one in parts:
        mine = [found.vcpus[vcpu] for vcpu in one.vcpus]
        assert len(set(mine)) == len(mine)
        assert any(set(mine) <= set(node.processors) for node in host.nodes)
    assert found.emulator


def made_up(cores: int) -> Topology:
    count = 4 * cores
    processors = tuple(
        Processor(cpu, cpu % (2 * cores) // cores, cpu % cores, cpu % (2 * cores) // cores)
        for cpu in range(count)
    )
    nodes = tuple(
        HostNode(node, tuple(it.number for it in processors if it.node == node), 8 * GIB, 3 * GIB)
        for node in (0, 1)
    )
    return Topology(processors, nodes, (), (), tuple(range(count)), None)
