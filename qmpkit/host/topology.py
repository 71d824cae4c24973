"""What this host is made of: processors, NUMA nodes with their memory, huge pages, caches.

Everything is read below a root directory, so that recorded hosts can be judged.  Blocking.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

from qmpkit.host.kvm import read_text
from qmpkit.spec.number_list import numbers_of
from qmpkit.spec.sizes import KIB

__all__ = ["CacheLevel", "HostNode", "HugePages", "Processor", "Topology", "topology"]

_CPUS = "sys/devices/system/cpu"
_NODES = "sys/devices/system/node"
_POOLS = "sys/kernel/mm/hugepages"
_KSM = "sys/kernel/mm/ksm/run"


@attrs.frozen
class Processor:
    """One processor as the scheduler knows it, a hardware thread of a core."""

    number: int
    socket: int
    core: int
    node: int


@attrs.frozen
class HugePages:
    """The pool of one page size: `size` in bytes, `total` and `free` in pages."""

    size: int
    total: int
    free: int


@attrs.frozen
class CacheLevel:
    """A cache that the processors of `shared` have together; `size` in bytes."""

    level: int
    kind: str
    size: int
    shared: tuple[int, ...]


@attrs.frozen
class HostNode:
    """A NUMA node: its processors that are online, its memory in bytes.

    `free` counts what a guest could be given, without page cache that would be dropped.
    `distances` are to the nodes in the order of their numbers, 10 is itself.
    """

    number: int
    processors: tuple[int, ...]
    memory: int
    free: int
    huge_pages: tuple[HugePages, ...] = ()
    distances: tuple[int, ...] = ()


@attrs.frozen
class Topology:
    """A host.  `allowed`: the processors that this process may use.

    `ksm`: whether the kernel merges equal pages now; None where it cannot.
    """

    processors: tuple[Processor, ...]
    nodes: tuple[HostNode, ...]
    huge_pages: tuple[HugePages, ...]
    caches: tuple[CacheLevel, ...]
    allowed: tuple[int, ...]
    ksm: bool | None

    def node(self, number: int) -> HostNode | None:
        """The node of that number."""
        return next((node for node in self.nodes if node.number == number), None)

    def pool(self, size: int) -> HugePages | None:
        """The huge pages of *size* bytes, of all nodes together."""
        return next((pool for pool in self.huge_pages if pool.size == size), None)

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """The processors of each core, in order."""
        found: dict[tuple[int, int], list[int]] = {}
        for it in self.processors:
            found.setdefault((it.socket, it.core), []).append(it.number)
        return tuple(tuple(threads) for threads in found.values())


def topology(root: Path = Path("/")) -> Topology:
    """Read it below *root*; what the kernel does not show there is left out.  Blocking, ~5 ms."""
    online = _list(root / _CPUS / "online")
    nodes = tuple(_nodes(root, online))
    node_of = {cpu: node.number for node in nodes for cpu in node.processors}
    processors = tuple(_processor(root, cpu, node_of.get(cpu, 0)) for cpu in online)
    if not nodes:  # a kernel without NUMA
        nodes = (_whole(root, online),)
    return Topology(
        processors=processors,
        nodes=nodes,
        huge_pages=tuple(_pools(root / _POOLS)),
        caches=tuple(_caches(root, online)),
        allowed=_allowed(root) or online,
        ksm=_ksm(root),
    )


def _number(path: Path, default: int = 0) -> int:
    text = read_text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else default


def _list(path: Path) -> tuple[int, ...]:
    try:
        return numbers_of(read_text(path, 65536).strip())
    except ValueError:
        return ()


def _processor(root: Path, cpu: int, node: int) -> Processor:
    folder = root / _CPUS / f"cpu{cpu}" / "topology"
    socket = _number(folder / "physical_package_id")
    return Processor(cpu, max(0, socket), _number(folder / "core_id", cpu), node)


def _allowed(root: Path) -> tuple[int, ...]:
    for line in read_text(root / "proc/self/status", 16384).splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            try:
                return numbers_of(value.strip())
            except ValueError:
                return ()
    return ()


def _nodes(root: Path, online: tuple[int, ...]) -> Iterator[HostNode]:
    for number in _list(root / _NODES / "online"):
        folder = root / _NODES / f"node{number}"
        known = _meminfo(folder / "meminfo")
        cpus = _list(folder / "cpulist")
        yield HostNode(
            number,
            tuple(cpu for cpu in cpus if cpu in online),
            known.get("MemTotal", 0),
            _free(known),
            tuple(_pools(folder / "hugepages")),
            tuple(int(word) for word in read_text(folder / "distance").split() if word.isdigit()),
        )


def _whole(root: Path, online: tuple[int, ...]) -> HostNode:
    known = _meminfo(root / "proc/meminfo")
    free = known.get("MemAvailable", known.get("MemFree", 0))
    pools = tuple(_pools(root / _POOLS))
    return HostNode(0, online, known.get("MemTotal", 0), free, pools, (10,))


def _free(known: dict[str, int]) -> int:
    """A node does not tell what is available: what is free, and files nobody has used lately."""
    return known.get("MemFree", 0) + known.get("Inactive(file)", 0)


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name; a node's own file says "Node 0" before each name."""
    found = {}
    for line in read_text(path, 8192).splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if name and words and words[0].isdigit():
            found[name.split()[-1]] = int(words[0]) * (KIB if words[-1] == "kB" else 1)
    return found


def _pools(folder: Path) -> Iterator[HugePages]:
    for size, entry in sorted(_by_size(folder)):
        yield HugePages(size, _number(entry / "nr_hugepages"), _number(entry / "free_hugepages"))


def _by_size(folder: Path) -> Iterator[tuple[int, Path]]:
    for entry in folder.iterdir() if folder.is_dir() else ():
        kib = entry.name.removeprefix("hugepages-").removesuffix("kB")
        if kib.isdigit():
            yield int(kib) * KIB, entry


def _caches(root: Path, online: tuple[int, ...]) -> Iterator[CacheLevel]:
    seen = set()
    for cpu in online:
        folder = root / _CPUS / f"cpu{cpu}" / "cache"
        for entry in sorted(folder.glob("index[0-9]")):
            shared = _list(entry / "shared_cpu_list") or (cpu,)
            kind = read_text(entry / "type").strip()
            level = _number(entry / "level")
            if (level, kind, shared) not in seen:
                seen.add((level, kind, shared))
                yield CacheLevel(level, kind, _cache_size(entry / "size"), shared)


def _cache_size(path: Path) -> int:
    text = read_text(path).strip()
    number = text.rstrip("KMG")
    unit = {"K": 10, "M": 20, "G": 30}.get(text[len(number) :], 0)
    return int(number) << unit if number.isdigit() else 0


def _ksm(root: Path) -> bool | None:
    text = read_text(root / _KSM).strip()
    return text == "1" if text else None
