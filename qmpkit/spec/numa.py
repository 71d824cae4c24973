"""The NUMA nodes that a guest sees, and where on the host their memory lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.given import items_of, table_of
from qmpkit.spec.memory import HostPolicy, Memory, backend_of, module_backend, policy_faults
from qmpkit.spec.names import RAM_ID, module_id, ram_id
from qmpkit.spec.number_list import list_problem, numbers_of
from qmpkit.spec.options import Json, keyvals
from qmpkit.spec.sizes import KIB, Size, format_size, to_bytes

__all__ = [
    "Module",
    "NumaNode",
    "numa_faults",
    "numa_options",
    "placed_backend",
    "ram_backends",
    "to_numa",
]

_LIMIT = 128
_GRAIN = 8 * KIB
_REMOTE = range(11, 255)  # 10 is the node itself, 255 cannot be reached


def _size(value: str | int) -> Size:
    return to_bytes(value, "numa.memory")


def _distances(value: Mapping[str, int]) -> dict[str, int]:
    return table_of(value, "numa.distances")


@attrs.frozen(kw_only=True)
class NumaNode:
    """A node of the guest.

    `cpus`: its processors of `maxcpus` ("0-3"); `memory`: bytes or "1GiB", together the
    machine's.  `host_nodes`: nodes of the host ("0") in which that lies, with `policy`
    "bind" (there or nowhere), "preferred" (one node, elsewhere when it is full) or
    "interleave" (spread).  `distances`: to other nodes by their numbers, 11 to 254, 20
    is usual; what one node says holds for the way back, unless the other says so itself.
    """

    cpus: str = ""
    memory: Size = attrs.field(converter=_size)
    host_nodes: str | None = None
    policy: HostPolicy = "bind"
    distances: dict[str, int] = attrs.field(factory=dict, converter=_distances)


def to_numa(value: Iterable[NumaNode]) -> tuple[NumaNode, ...]:
    """Any list of nodes as a tuple."""
    return items_of(value, "numa", 'NumaNode(cpus="0-1", memory="1GiB")', (NumaNode,))


def ram_backends(memory: Memory, nodes: Iterable[NumaNode]) -> Iterator[Json]:
    """The `-object`s of the machine's RAM: one, or one for each node."""
    empty = True
    for number, node in enumerate(nodes):
        empty = False
        part = attrs.evolve(
            memory, size=node.memory, host_nodes=node.host_nodes, policy=node.policy
        )
        yield backend_of(part, ram_id(number))
    if empty:
        yield backend_of(memory, RAM_ID)


class Module(Protocol):
    """Memory beside that of the start."""

    @property
    def id(self) -> str: ...
    @property
    def size(self) -> Size: ...
    @property
    def node(self) -> int | None: ...


def placed_backend(memory: Memory, nodes: Sequence[NumaNode], module: Module) -> Json:
    """The `-object` of a module beside the RAM, where its node's memory lies."""
    if nodes:
        node = nodes[module.node or 0]
        memory = attrs.evolve(memory, host_nodes=node.host_nodes, policy=node.policy)
    return module_backend(memory, module.size, module_id(module.id))


def numa_options(nodes: tuple[NumaNode, ...]) -> Iterator[str]:
    """The values of `-numa`."""
    for number, node in enumerate(nodes):
        pairs: list[tuple[str, Any]] = [("nodeid", number)]
        pairs += [("cpus", part) for part in node.cpus.split(",") if part]
        yield keyvals("node", [*pairs, ("memdev", ram_id(number))])
    if any(node.distances for node in nodes):
        for source, target, value in _all_distances(nodes):
            yield keyvals("dist", [("src", source), ("dst", target), ("val", value)])


def _all_distances(nodes: tuple[NumaNode, ...]) -> Iterator[tuple[int, int, int]]:
    for source in range(len(nodes)):
        for target in range(len(nodes)):
            if source != target:
                there = nodes[source].distances.get(str(target))
                back = nodes[target].distances.get(str(source))
                yield source, target, there or back or 20


def numa_faults(nodes: tuple[NumaNode, ...], memory: Memory, vcpus: int) -> Iterator[Fault]:
    """Everything that contradicts itself, or the rest of the machine."""
    for number, dimm in enumerate(memory.dimms):
        if dimm.node is not None and not 0 <= dimm.node < max(1, len(nodes)):
            yield Fault(f"memory.dimms[{number}].node", f"there is no node {dimm.node} in numa")
    if not nodes:
        return
    if len(nodes) > _LIMIT:
        yield Fault("numa", f"{len(nodes)} nodes are more than the {_LIMIT} that QEMU has")
    if memory.host_nodes is not None:
        yield Fault("memory.host_nodes", "with numa each node has its own", "numa[0].host_nodes")
    if memory.mem_path is not None and memory.huge_pages is None:
        yield Fault("memory.mem_path", "one file cannot hold the memory of several nodes")
    for number, node in enumerate(nodes):
        yield from _node_faults(node, f"numa[{number}]", len(nodes), number)
    total = sum(node.memory for node in nodes)
    if total != memory.size:
        message = f"the nodes have {format_size(total)} together"
        hint = f'memory = "{format_size(total)}", or change the nodes'
        yield Fault("memory.size", f"is {format_size(memory.size)}, and {message}", hint)
    yield from _cpu_faults(nodes, vcpus)


def _node_faults(node: NumaNode, where: str, count: int, own: int) -> Iterator[Fault]:
    if node.memory < _GRAIN or node.memory % _GRAIN:
        message = f"{format_size(node.memory)} is not a multiple of 8KiB"
        yield Fault(f"{where}.memory", message)
    if node.cpus and (problem := list_problem(node.cpus)):
        yield Fault(f"{where}.cpus", problem, '"0-3"')
    yield from policy_faults(node.host_nodes, node.policy, where)
    for target, value in node.distances.items():
        if not target.isdecimal() or int(target) >= count or int(target) == own:
            yield Fault(f"{where}.distances.{target}", "there is no other node of that number")
        elif value not in _REMOTE:
            yield Fault(f"{where}.distances.{target}", f"is from 11 to 254, not {value}")


def _cpu_faults(nodes: tuple[NumaNode, ...], vcpus: int) -> Iterator[Fault]:
    where: dict[int, int] = {}
    for number, node in enumerate(nodes):
        for cpu in numbers_of(node.cpus) if not list_problem(node.cpus) else ():
            if cpu in where:
                message = f"processor {cpu} is already in numa[{where[cpu]}]"
                yield Fault(f"numa[{number}].cpus", message)
            where.setdefault(cpu, number)
    if missing := [cpu for cpu in range(vcpus) if cpu not in where]:
        yield Fault("numa", f"processor {missing[0]} is in no node", "each of maxcpus is in one")
    if beyond := [cpu for cpu in where if cpu >= vcpus]:
        message = f"there is no processor {beyond[0]}: they are 0 to {vcpus - 1}"
        yield Fault(f"numa[{where[beyond[0]]}].cpus", message)
