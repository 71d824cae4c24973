"""Memory: how much is left, huge pages, NUMA nodes."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from qmpkit.host.doctor.cgroups import memory_left
from qmpkit.host.doctor.finding import Finding
from qmpkit.host.doctor.place import Host
from qmpkit.host.doctor.words import count_of_list, plural, size
from qmpkit.spec.sizes import GIB, KIB, MIB

__all__ = ["memory"]

# What a machine has when its profile says nothing.
_DEFAULT_GUEST = 512 * MIB
_NEVER_OVERCOMMIT = 2
_MODES = {"never": "off", "madvise": "on where a program asks", "always": "always on"}


def memory(host: Host) -> Iterator[Finding]:
    """How much guests may have, and of which kind."""
    yield from _ram(host)
    yield from _huge_pages(host)
    yield from _transparent(host)
    yield _numa(host)


def _meminfo(host: Host, path: str = "/proc/meminfo") -> dict[str, int]:
    """Bytes by name; a node's own file says "Node 0" before each name."""
    found = {}
    for line in host.read(path, 8192).splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            unit = KIB if words[-1] == "kB" else 1
            found[name.split()[-1]] = int(words[0]) * unit
    return found


def _ram(host: Host) -> Iterator[Finding]:
    known = _meminfo(host)
    if "MemTotal" not in known:
        yield Finding(
            topic="memory", name="RAM", verdict="note", found="/proc/meminfo tells nothing"
        )
        return
    available = known.get("MemAvailable", known.get("MemFree", 0))
    allowed = memory_left(host)
    usable = available if allowed is None else min(available, allowed)
    swap = known.get("SwapTotal", 0)
    words = f"{size(available)} of {size(known['MemTotal'])} available"
    words += f", {size(swap)} of swap" if swap else ", no swap"
    if allowed is not None and allowed < available:
        words += f"; our cgroup may have {size(allowed)} more"
    enough = usable >= _DEFAULT_GUEST
    yield Finding(
        topic="memory",
        name="RAM",
        verdict="ok" if enough else "warn",
        found=words,
        enough_for=f"guests of {size(usable)} together",
        cure="" if enough else "end other programs, or give the guests less: --set memory=128MiB",
        facts={
            "total": known["MemTotal"],
            "available": available,
            "swap": swap,
            "cgroup_left": allowed,
        },
    )
    if host.number("/proc/sys/vm/overcommit_memory") == _NEVER_OVERCOMMIT:
        yield Finding(
            topic="memory",
            name="overcommit",
            verdict="warn",
            found="vm.overcommit_memory=2: QEMU is refused memory that nobody uses yet",
            cure=f"{host.sudo}sysctl vm.overcommit_memory=0",
        )


def _huge_pages(host: Host) -> Iterator[Finding]:
    folder = "/sys/kernel/mm/hugepages"
    pools = {}
    for name in host.names(folder):
        kib = name.removeprefix("hugepages-").removesuffix("kB")
        total = host.number(f"{folder}/{name}/nr_hugepages")
        free = host.number(f"{folder}/{name}/free_hugepages")
        if kib.isdigit() and total is not None and free is not None:
            pools[int(kib) * KIB] = (total, free)
    mounts = _mounts(host, "hugetlbfs")
    usable = [path for path in mounts if host.may_use(host.at(path))]
    free = sum(each * left for each, (_, left) in pools.items())
    filled = [
        f"{left} of {total} pages of {size(each)} free"
        for each, (total, left) in sorted(pools.items())
        if total
    ]
    ready = bool(free and usable)
    yield Finding(
        topic="memory",
        name="huge pages",
        verdict="ok" if ready else "note",
        found=(", ".join(filled) or ("none reserved" if pools else "not in this kernel"))
        + (f", mounted on {mounts[0]}" if mounts else ", not mounted" if pools else ""),
        enough_for=f"guests of {size(free)} in huge pages" if ready else "",
        lacks=() if ready else ("hugepages",),
        cure="" if ready else _cure_of_huge_pages(host, pools, free, mounts, usable),
        facts={
            "pools": [
                {"size": each, "total": total, "free": left}
                for each, (total, left) in sorted(pools.items())
            ],
            "mounts": mounts,
        },
    )


def _mounts(host: Host, kind: str) -> list[str]:
    lines = (line.split() for line in host.read("/proc/mounts", 256 * KIB).splitlines())
    return [words[1] for words in lines if len(words) > 2 and words[2] == kind]


def _cure_of_huge_pages(
    host: Host, pools: dict[int, tuple[int, int]], free: int, mounts: list[str], usable: list[str]
) -> str:
    if not pools:
        return ""
    steps = []
    if not free:
        steps.append(f"{host.sudo}sysctl vm.nr_hugepages=N ({_pages_of_a_gib(min(pools))})")
    if not mounts:
        steps.append(f"{host.sudo}mount -t hugetlbfs none /dev/hugepages")
    elif not usable:
        steps.append(f"{host.sudo}chmod 1777 {mounts[0]}")
    return "; ".join(steps)


def _pages_of_a_gib(each: int) -> str:
    return f"N = {GIB // each} for 1 GiB"


def _transparent(host: Host) -> Iterator[Finding]:
    modes = host.read("/sys/kernel/mm/transparent_hugepage/enabled")
    if "[" not in modes:
        return
    mode = modes.partition("[")[2].partition("]")[0]
    off = mode == "never"
    switch = "/sys/kernel/mm/transparent_hugepage/enabled"
    yield Finding(
        topic="memory",
        name="transparent",
        verdict="note" if off else "ok",
        found=f"transparent huge pages are {_MODES.get(mode, mode)}",
        enough_for="" if off else "guest memory: QEMU asks for them",
        cure=f"echo madvise | {host.sudo}tee {switch}" if off else "",
        facts={"mode": mode},
    )


@attrs.frozen
class _Node:
    node: int
    cpus: str
    memory: int

    def __str__(self) -> str:
        processors = plural(count_of_list(self.cpus), "processor")
        return f"node {self.node} with {processors} and {size(self.memory)}"


def _nodes(host: Host) -> list[_Node]:
    folder = "/sys/devices/system/node"
    found = []
    for name in host.names(folder):
        number = name.removeprefix("node")
        if number.isdigit():
            memory = _meminfo(host, f"{folder}/{name}/meminfo").get("MemTotal", 0)
            found.append(_Node(int(number), host.read(f"{folder}/{name}/cpulist"), memory))
    return sorted(found, key=lambda node: node.node)


def _numa(host: Host) -> Finding:
    nodes = _nodes(host)
    if len(nodes) > 1:
        words = f"{len(nodes)} nodes: {', '.join(str(node) for node in nodes)}"
        biggest = max(node.memory for node in nodes)
        enough = f"guests of {size(biggest)} on a node of their own"
    else:
        words = "1 node" if nodes else "the kernel shows no nodes"
        enough = "every guest: nothing has to be placed"
    return Finding(
        topic="memory",
        name="NUMA",
        verdict="ok",
        found=words,
        enough_for=enough,
        facts={"nodes": [attrs.asdict(node) for node in nodes]},
    )
