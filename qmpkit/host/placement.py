"""Which processors of the host a machine's vCPUs are put on when nobody says which.  Pure.

One NUMA node takes a whole machine, or a node of its own each of its guest's: memory of
another node is some 1.5 to 2 times as far away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from qmpkit.errors import HostLacks
from qmpkit.host.topology import HostNode, Topology
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.number_list import numbers_of, text_of
from qmpkit.spec.resources import AUTO
from qmpkit.spec.sizes import format_size

__all__ = ["Part", "Placement", "place", "placed"]


@attrs.frozen
class Part:
    """What has to be together: vCPUs by their numbers, and bytes of memory.

    `nodes`: those of the host that it has to be in; empty is any.  `huge_pages`: the size
    of pages that the memory is made of.
    """

    vcpus: tuple[int, ...]
    memory: int
    nodes: tuple[int, ...] = ()
    huge_pages: int | None = None


@attrs.frozen
class Placement:
    """The outcome: a processor for each vCPU, a node for each part, and who has the rest.

    `emulator`: the other processors of these nodes, for QEMU's own threads; all of them
    when none is left over.
    """

    vcpus: Mapping[int, int]
    nodes: tuple[tuple[int, ...], ...]
    emulator: tuple[int, ...]


def place(
    host: Topology, taken: Mapping[int, int], parts: Sequence[Part], *, siblings: bool = False
) -> Placement:
    """Put each part on one node that has enough memory and processors for it.

    *taken*: how many vCPUs are pinned to each processor already.  Of the nodes that fit, the
    one with the least of them for each processor is taken; in it the least used processors,
    from a core of its own for each vCPU on, or with *siblings* (a guest that sees threads)
    core by core.  Raises HostLacks when no node fits.
    """
    counts = dict(taken)
    vcpus: dict[int, int] = {}
    chosen: list[tuple[int, ...]] = []
    used: dict[int, int] = {}
    for part in parts:
        node = _best(host, counts, part, used)
        free = _in_order(host, node, counts, siblings=siblings)
        for vcpu, processor in zip(part.vcpus, free, strict=False):
            vcpus[vcpu] = processor
            counts[processor] = counts.get(processor, 0) + 1
        used[node.number] = used.get(node.number, 0) + part.memory
        chosen.append(part.nodes or (node.number,))
    reach = {cpu for numbers in chosen for cpu in _usable(host, numbers)}
    rest = reach - set(vcpus.values()) or reach
    return Placement(vcpus, tuple(chosen), tuple(sorted(rest)))


def _usable(host: Topology, nodes: Sequence[int]) -> Iterator[int]:
    for node in host.nodes:
        if node.number in nodes:
            yield from (cpu for cpu in node.processors if cpu in host.allowed)


def _best(
    host: Topology, taken: Mapping[int, int], part: Part, used: Mapping[int, int]
) -> HostNode:
    wanted = [node for node in host.nodes if not part.nodes or node.number in part.nodes]
    fits = [node for node in wanted if not _why_not(host, node, part, used.get(node.number, 0))]
    if not fits:
        whys = [
            f"node {node.number} {_why_not(host, node, part, used.get(node.number, 0))}"
            for node in wanted
        ]
        what = "; ".join(whys) or f"there is no node {text_of(part.nodes)}"
        cure = "give it less, name processors in cpu.pin, or leave pin out"
        raise HostLacks(f'no NUMA node fits for cpu.pin = "auto": {what}', cure)

    def load(node: HostNode) -> tuple[float, int]:
        cpus = [cpu for cpu in node.processors if cpu in host.allowed]
        return sum(taken.get(cpu, 0) for cpu in cpus) / len(cpus), -node.free

    return min(fits, key=load)


def _why_not(host: Topology, node: HostNode, part: Part, used: int) -> str:
    cpus = [cpu for cpu in node.processors if cpu in host.allowed]
    if not cpus or len(cpus) < len(part.vcpus):
        return f"has {len(cpus)} processors for us, {len(part.vcpus)} are wanted"
    free = node.free
    if part.huge_pages is not None:
        pools = (pool for pool in node.huge_pages if pool.size == part.huge_pages)
        free = sum(pool.size * pool.free for pool in pools)
    if free - used < part.memory:
        kind = " in huge pages" if part.huge_pages is not None else ""
        left = max(0, free - used)
        return f"has {left >> 20}MiB{kind} free, {format_size(part.memory)} are wanted"
    return ""


def _in_order(
    host: Topology, node: HostNode, taken: Mapping[int, int], *, siblings: bool
) -> list[int]:
    """The node's processors, the best first."""
    rank: dict[int, tuple[int, ...]] = {}
    for core in host.cores:
        mine = [cpu for cpu in core if cpu in node.processors and cpu in host.allowed]
        busy = sum(taken.get(cpu, 0) for cpu in mine)
        for place, cpu in enumerate(mine):
            own = taken.get(cpu, 0)
            rank[cpu] = (busy, mine[0], place) if siblings else (own, place, busy, cpu)
    return sorted(rank, key=lambda cpu: rank[cpu])


def _parts(spec: MachineSpec) -> list[Part]:
    huge = spec.memory.huge_pages
    count = spec.cpu.maxcpus or spec.cpu.cpus
    if not spec.numa:
        nodes = numbers_of(spec.memory.host_nodes or "")
        return [Part(tuple(range(count)), spec.memory.total, nodes, huge)]
    return [
        Part(numbers_of(node.cpus), node.memory, numbers_of(node.host_nodes or ""), huge)
        for node in spec.numa
    ]


def placed(spec: MachineSpec, host: Topology, taken: Mapping[int, int]) -> MachineSpec:
    """*spec* with `cpu.pin = "auto"` made concrete, and its memory where its vCPUs are.

    Raises HostLacks when no node fits.
    """
    if spec.cpu.pin != AUTO:
        return spec
    found = place(host, taken, _parts(spec), siblings=(spec.cpu.threads or 1) > 1)
    count = max(found.vcpus) + 1
    pin = tuple(str(found.vcpus[vcpu]) if vcpu in found.vcpus else "" for vcpu in range(count))
    resources = spec.resources
    if resources.emulator is None:
        resources = attrs.evolve(resources, emulator=text_of(found.emulator))
    spec = attrs.evolve(spec, cpu=attrs.evolve(spec.cpu, pin=pin), resources=resources)
    return spec if len(host.nodes) == 1 else _near(spec, found)


def _near(spec: MachineSpec, found: Placement) -> MachineSpec:
    """Its memory on the nodes of its vCPUs, or elsewhere when they get full."""
    if spec.numa:
        nodes = [
            node
            if node.host_nodes is not None
            else attrs.evolve(node, host_nodes=text_of(numbers), policy="preferred")
            for node, numbers in zip(spec.numa, found.nodes, strict=True)
        ]
        return attrs.evolve(spec, numa=nodes)
    if spec.memory.host_nodes is not None:
        return spec
    memory: Memory = attrs.evolve(
        spec.memory, host_nodes=text_of(found.nodes[0]), policy="preferred"
    )
    return attrs.evolve(spec, memory=memory)
