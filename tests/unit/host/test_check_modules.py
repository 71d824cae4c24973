"""Memory beside the RAM, modules and what can grow, is asked of the host with it and alone."""

from __future__ import annotations

import resource
from pathlib import Path

import attrs
import pytest

from qmpkit.host.check_resources import check_module, check_resources
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.numa import NumaNode
from qmpkit.spec.peripherals import VirtioMem
from qmpkit.spec.sizes import GIB, MIB
from tests.unit.host.trees import two_nodes, write

MODULES: list[Dimm | VirtioMem] = [
    Dimm(size="40MiB", id="dimm0"),
    VirtioMem(size="40MiB", id="vmem0"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """120 free pages of 2 MiB, 100 of them on node 0."""
    return two_nodes(tmp_path, huge=(100, 20))


def with_module(spec: MachineSpec, module: Dimm | VirtioMem) -> MachineSpec:
    if isinstance(module, VirtioMem):
        return attrs.evolve(spec, devices=[module])
    return attrs.evolve(spec, memory=attrs.evolve(spec.memory, dimms=[module]))


def huge(size: str, **more: object) -> MachineSpec:
    return MachineSpec(memory=Memory(size, slots=1, maxmem="1GiB", huge_pages="2MiB", **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("module", MODULES)
def test_their_pages_are_asked_for_at_a_start(root: Path, module: Dimm | VirtioMem) -> None:
    assert list(check_resources(with_module(huge("200MiB"), module), root)) == []
    (problem,) = check_resources(with_module(huge("204MiB"), module), root)
    assert "2 more free huge pages of 2MiB" in str(problem.fault)


@pytest.mark.parametrize("module", MODULES)
def test_their_pages_lie_on_the_nodes_of_their_node(root: Path, module: Dimm | VirtioMem) -> None:
    nodes = [
        NumaNode(cpus="0", memory="40MiB", host_nodes="1"),
        NumaNode(memory="40MiB", host_nodes="0"),
    ]
    spec = attrs.evolve(huge("80MiB"), numa=nodes)
    (problem,) = check_resources(with_module(spec, module), root)
    assert "20 more free huge pages of 2MiB are needed on its nodes" in str(problem.fault)
    there = attrs.evolve(module, node=1)
    assert list(check_resources(with_module(spec, there), root)) == []


@pytest.mark.parametrize("module", MODULES)
def test_one_that_is_plugged_asks_for_its_own_pages_alone(
    root: Path, module: Dimm | VirtioMem
) -> None:
    spec = with_module(huge("1000MiB"), module)  # the pages of the RAM are in use
    assert list(check_module(spec, module, root)) == []
    bound = attrs.evolve(spec, numa=[NumaNode(cpus="0", memory="1000MiB", host_nodes="1")])
    assert list(check_module(bound, module, root)) == [], "all of node 1's"
    more = attrs.evolve(module, size=42 * MIB)
    (problem,) = check_module(bound, more, root)
    assert problem.fault.path == "memory.host_nodes"


@pytest.mark.parametrize("module", MODULES)
def test_all_of_it_is_locked(
    root: Path, monkeypatch: pytest.MonkeyPatch, module: Dimm | VirtioMem
) -> None:
    spec = with_module(MachineSpec(memory=Memory("512MiB", lock=True)), module)
    write(root, "proc/self/status", "CapEff:\t0000000000000000\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (700 * MIB, GIB))
    for problems in (check_resources(spec, root), check_module(spec, module, root)):
        (problem,) = problems
        told = "we may lock 700MiB, the machine takes 808MiB"
        assert problem.fault.message.startswith(told)
