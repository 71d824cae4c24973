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
    yield _huge_pages(host)
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
    more = "end other programs"
    if allowed is not None and allowed < available:
        words += f"; our cgroup may have {size(allowed)} more"
        more = "raise this cgroup's limit (docker: --memory)"
    enough = usable >= _DEFAULT_GUEST
    yield Finding(
        topic="memory",
        name="RAM",
        verdict="ok" if enough else "warn",
        found=words,
        enough_for=f"guests of {size(usable)} together",
        cure="" if enough else f"{more}, or give the guests less: --set memory=128MiB",
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


@attrs.frozen
class _Pool:
    """The huge pages of one size, in bytes."""

    size: int
    total: int
    free: int

    def __str__(self) -> str:
        return f"{self.free} of {self.total} pages of {size(self.size)} free"


def _pools(host: Host) -> list[_Pool]:
    folder = "/sys/kernel/mm/hugepages"
    found = []
    for name in host.names(folder):
        kib = name.removeprefix("hugepages-").removesuffix("kB")
        total = host.number(f"{folder}/{name}/nr_hugepages")
        free = host.number(f"{folder}/{name}/free_hugepages")
        if kib.isdigit() and total is not None and free is not None:
            found.append(_Pool(int(kib) * KIB, total, free))
    return sorted(found, key=lambda pool: pool.size)


def _huge_pages(host: Host) -> Finding:
    pools, mounts = _pools(host), _mounts(host, "hugetlbfs")
    facts = {"pools": [attrs.asdict(pool) for pool in pools], "mounts": mounts}
    if not pools:
        return Finding(
            topic="memory",
            name="huge pages",
            verdict="note",
            found="not in this kernel",
            lacks=("hugepages",),
            facts=facts,
        )
    free = sum(pool.size * pool.free for pool in pools)
    usable = any(host.may_use(host.at(path)) for path in mounts)
    ready = bool(free) and usable
    filled = ", ".join(str(pool) for pool in pools if pool.total)
    where = f"mounted on {mounts[0]}" if mounts else "not mounted"
    return Finding(
        topic="memory",
        name="huge pages",
        verdict="ok" if ready else "note",
        found=f"{filled or 'none reserved'}, {where}",
        enough_for=f"guests of {size(free)} in huge pages" if ready else "",
        lacks=() if ready else ("hugepages",),
        cure="; ".join(_towards_huge_pages(host, mounts, reserved=bool(free), usable=usable)),
        facts=facts,
    )


def _towards_huge_pages(
    host: Host, mounts: list[str], *, reserved: bool, usable: bool
) -> Iterator[str]:
    if not reserved:
        each = _meminfo(host).get("Hugepagesize", 2 * MIB)
        yield f"{host.sudo}sysctl vm.nr_hugepages=N (N = {GIB // each} for 1 GiB)"
    if not mounts:
        yield f"{host.sudo}mount -t hugetlbfs none /dev/hugepages"
    elif not usable:
        yield f"{host.sudo}chmod 1777 {mounts[0]}"


def _mounts(host: Host, kind: str) -> list[str]:
    lines = (line.split() for line in host.read("/proc/mounts", 256 * KIB).splitlines())
    return [words[1] for words in lines if len(words) > 2 and words[2] == kind]


def _transparent(host: Host) -> Iterator[Finding]:
    modes = host.read("/sys/kernel/mm/transparent_hugepage/enabled")
    if "[" not in modes:
        return
    mode = modes.partition("[")[2].partition("]")[0]
    off = mode == "never"
    switch = "/sys/kernel/mm/transparent_hugepage/enabled"
    yield Finding(
        topic="memory",
        name="THP",
        verdict="note" if off else "ok",
        found=f"transparent huge pages are {_MODES.get(mode, mode)}",
        enough_for="" if off else "guest memory, for which QEMU asks",
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
