"""What a machine's pins, memory and limits need of the host.  Blocking."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import attrs

from qmpkit.errors import Fault, HostLacks
from qmpkit.host.findings import Problem, lacking
from qmpkit.host.kvm import read_text
from qmpkit.host.rights import CAP_IPC_LOCK, CAP_SYS_NICE, capable
from qmpkit.host.topology import HostNode, Topology, topology
from qmpkit.process.cgroup import base_of, lacking_cure
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.numa import Module
from qmpkit.spec.number_list import numbers_of, text_of
from qmpkit.spec.peripherals import VirtioMem
from qmpkit.spec.resources import AUTO, Resources, controllers
from qmpkit.spec.sizes import KIB, MIB, format_size

__all__ = ["check_module", "check_resources", "needs_topology"]

_OWN_MEMORY = 256 * MIB  # what QEMU locks beside the guest's


def needs_topology(spec: MachineSpec) -> bool:
    """Whether the host has to be looked at: most machines ask for none of it."""
    memory, wanted = spec.memory, spec.resources
    return (
        spec.cpu.pin is not None
        or memory.huge_pages is not None
        or memory.host_nodes is not None
        or any(node.host_nodes is not None for node in spec.numa)
        or wanted.emulator is not None
        or bool(wanted.iothreads)
    )


def check_resources(spec: MachineSpec, root: Path = Path("/")) -> Iterator[Problem]:
    """Everything of it that this host does not have."""
    yield from _check_lock(spec, root)
    yield from scheduling_problems(spec.resources, root)
    yield from _check_limits(spec, root)
    if needs_topology(spec):
        host = topology(root)
        yield from _check_pins(spec, host)
        yield from _check_nodes(spec, host)
        yield from _check_pages(spec, host, root)


def check_module(spec: MachineSpec, module: Module, root: Path = Path("/")) -> Iterator[Problem]:
    """What this host lacks for *module*, which comes to a machine that runs: *spec* has it."""
    yield from _check_lock(spec, root)
    memory = attrs.evolve(spec.memory, size=module.size, dimms=())
    if spec.numa:
        node = spec.numa[module.node or 0]
        memory = attrs.evolve(memory, host_nodes=node.host_nodes, policy=node.policy)
    if memory.huge_pages is not None:  # those of the rest are in use
        alone = attrs.evolve(spec, memory=memory, numa=(), devices=())
        yield from _check_pages(alone, topology(root), root)


def _check_lock(spec: MachineSpec, root: Path) -> Iterator[Problem]:
    if not spec.memory.lock or capable(root, CAP_IPC_LOCK):
        return
    allowed = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    wanted = spec.most_memory + _OWN_MEMORY
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        what = f"we may lock {format_size(allowed)}, the machine takes {format_size(wanted)}"
        cure = "raise it: LimitMEMLOCK= of the service, or memlock in /etc/security/limits.conf"
        yield lacking("memory.lock", HostLacks(what, cure))


def scheduling_problems(wanted: Resources, root: Path = Path("/")) -> Iterator[Problem]:
    """Rights that a policy or a niceness needs and that we do not have."""
    realtime = wanted.policy in ("fifo", "rr")
    if not (realtime or wanted.nice is not None) or capable(root, CAP_SYS_NICE):
        return
    if realtime:
        most = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
        if most != resource.RLIM_INFINITY and most < wanted.priority:
            what = f"we may use real-time priorities up to {most}, not {wanted.priority}"
            cure = "LimitRTPRIO= of the service, or rtprio in /etc/security/limits.conf"
            yield lacking("resources.policy", HostLacks(what, cure))
    if wanted.nice is not None:
        least = 20 - resource.getrlimit(resource.RLIMIT_NICE)[0]
        own = os.getpriority(os.PRIO_PROCESS, 0)
        if wanted.nice < min(own, least):
            what = f"we may not go below niceness {min(own, least)}"
            cure = "LimitNICE= of the service, or nice in /etc/security/limits.conf"
            yield lacking("resources.nice", HostLacks(what, cure))


def _check_limits(spec: MachineSpec, root: Path) -> Iterator[Problem]:
    wanted = controllers(spec.resources)
    if not wanted:
        return
    try:
        base = base_of(root)
    except HostLacks as error:
        yield lacking("resources", error)
        return
    if absent := [name for name in wanted if name not in base.controllers]:
        what = f"the control group {base.path} lacks the controller {', '.join(absent)}"
        yield lacking("resources", HostLacks(what, lacking_cure(absent)))


def _check_pins(spec: MachineSpec, host: Topology) -> Iterator[Problem]:
    pin, wanted = spec.cpu.pin, spec.resources
    named = {"cpu.pin": pin} if isinstance(pin, str) and pin != AUTO else {}
    if isinstance(pin, tuple):
        named = {f"cpu.pin[{number}]": places for number, places in enumerate(pin)}
    if wanted.emulator is not None:
        named["resources.emulator"] = wanted.emulator
    named |= {f"resources.iothreads.{name}": to for name, to in wanted.iothreads.items()}
    online = {processor.number for processor in host.processors}
    for where, places in named.items():
        try:
            numbers = numbers_of(places)
        except ValueError:
            continue  # a fault of the spec alone
        if absent := [number for number in numbers if number not in online]:
            message = f"this host has no processor {text_of(absent)}"
            yield Problem(Fault(where, message, f"it has {text_of(online)}"))
        elif numbers and not set(numbers) & set(host.allowed):
            what = f"we may not use the processors {places}"
            yield lacking(where, HostLacks(what, f"we may use {text_of(host.allowed)}"))


def _check_nodes(spec: MachineSpec, host: Topology) -> Iterator[Problem]:
    named = {"memory.host_nodes": spec.memory.host_nodes}
    named |= {f"numa[{n}].host_nodes": node.host_nodes for n, node in enumerate(spec.numa)}
    known = [node.number for node in host.nodes]
    for where, nodes in named.items():
        for number in _numbers(nodes):
            if number not in known:
                message = f"this host has no NUMA node {number}"
                yield Problem(Fault(where, message, f"it has {text_of(known)}"))


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return numbers_of(text or "")
    except ValueError:
        return ()


def _check_pages(spec: MachineSpec, host: Topology, root: Path) -> Iterator[Problem]:
    size = spec.memory.huge_pages
    if size is None:
        return
    pool = host.pool(size)
    if pool is None:
        sizes = ", ".join(format_size(pool.size) for pool in host.huge_pages) or "none"
        message = f"this host has no huge pages of {format_size(size)}"
        yield Problem(Fault("memory.huge_pages", message, f"it has {sizes}"))
        return
    if spec.memory.mem_path is not None and (fault := _mount_fault(spec, size, root)):
        yield Problem(fault)
    # What is above may be taken from the kernel in the moment that it is needed.
    spare = _number(root, size, "nr_overcommit_hugepages") - _number(
        root, size, "surplus_hugepages"
    )
    if (short := -(-spec.most_memory // size) - pool.free - max(0, spare)) > 0:
        yield lacking("memory.huge_pages", _too_few(size, short, pool.total))
        return
    for nodes, bytes_ in _bound(spec):
        yield from _check_bound(host.nodes, nodes, bytes_, size)


def _too_few(size: int, short: int, total: int) -> HostLacks:
    kib = size // KIB
    what = f"{short} more free huge pages of {format_size(size)} are needed"
    path = f"/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages"
    return HostLacks(what, f"echo {total + short} | sudo tee {path}")


def _number(root: Path, size: int, name: str) -> int:
    path = root / f"sys/kernel/mm/hugepages/hugepages-{size // KIB}kB" / name
    text = read_text(path).strip()
    return int(text) if text.isdigit() else 0


def _bound(spec: MachineSpec) -> Iterator[tuple[tuple[int, ...], int]]:
    parts = [(node.host_nodes, node.policy, node.memory) for node in spec.numa]
    if not parts:
        parts = [(spec.memory.host_nodes, spec.memory.policy, spec.memory.size)]
    modules: list[Module] = [
        *spec.memory.dimms,
        *(it for it in spec.devices if isinstance(it, VirtioMem)),
    ]
    for number, (nodes, policy, size) in enumerate(parts):
        if nodes is not None and policy == "bind":
            beside = (it.size for it in modules if (it.node or 0) == number)
            yield _numbers(nodes), size + sum(beside)


def _check_bound(
    nodes: tuple[HostNode, ...], wanted: tuple[int, ...], bytes_: int, size: int
) -> Iterator[Problem]:
    pools = [pool for node in nodes if node.number in wanted for pool in node.huge_pages]
    free = sum(pool.free for pool in pools if pool.size == size)
    if (short := bytes_ // size - free) > 0:
        folder = f"/sys/devices/system/node/node{wanted[0]}/hugepages/hugepages-{size // KIB}kB"
        what = f"{short} more free huge pages of {format_size(size)} are needed on its nodes"
        cure = f"write more to {folder}/nr_hugepages"
        yield lacking("memory.host_nodes", HostLacks(what, cure))


def _mount_fault(spec: MachineSpec, size: int, root: Path) -> Fault | None:
    """What is wrong with a path that is to be in a hugetlbfs of that page size."""
    path = Path(spec.memory.mem_path or "")
    mounts = [line.split() for line in read_text(root / "proc/mounts", 1 << 18).splitlines()]
    over = [words for words in mounts if len(words) > 3 and _is_below(path, Path(words[1]))]
    mount = max(over, key=lambda words: len(words[1]), default=None)
    if mount is None or mount[2] != "hugetlbfs":
        hint = f"mount -t hugetlbfs -o pagesize={size // MIB}M none {path}"
        return Fault("memory.mem_path", f"{str(path)!r} is not in a hugetlbfs", hint)
    told = next((word for word in mount[3].split(",") if word.startswith("pagesize=")), "")
    if told and told != f"pagesize={size // MIB}M":
        message = f"{mount[1]} has pages of {told.removeprefix('pagesize=')}"
        return Fault("memory.huge_pages", f"{message}, not {format_size(size)}")
    return None


def _is_below(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents
