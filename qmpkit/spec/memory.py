"""The RAM of a machine, always an explicit backend.

A state saved without an explicit backend cannot be restored into a machine with
one, so there is one from the first start on, under one name for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.dimms import Dimm, dimm_faults, to_dimms
from qmpkit.spec.number_list import list_problem, numbers_of
from qmpkit.spec.options import Json, keyvals
from qmpkit.spec.sizes import GIB, KIB, MIB, Size, format_size, to_bytes

__all__ = [
    "HostPolicy",
    "Memory",
    "backend_of",
    "memory_faults",
    "memory_option",
    "module_backend",
    "policy_faults",
    "to_memory",
    "without_dimm",
]

HostPolicy = Literal["bind", "preferred", "interleave"]

_GRAIN = 8 * KIB
"""QEMU rounds `-m` up to this and then finds that the backend has another size."""

_SLOT_LIMIT = 256
_LEAST_HUGE = 64 * KIB


def _size(value: str | int) -> Size:
    return to_bytes(value, "memory.size")


def _maxmem(value: str | int | None) -> Size | None:
    return None if value is None else to_bytes(value, "memory.maxmem")


def _huge_pages(value: str | int | None) -> Size | None:
    return None if value is None else to_bytes(value, "memory.huge_pages")


def _optional_path(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else os.fspath(value)


@attrs.frozen
class Memory:
    """`size` bytes (or "1GiB") at start; with `slots` and `maxmem`, room for hotplug.

    `mem_path` puts the RAM into that file; with `share` what the guest writes is
    seen by others that map it (and stays in the file), without it the file is only
    read: copy-on-write, and nothing of it can be given back to the host. `share` without
    `mem_path` uses an anonymous memfd.
    `prealloc` touches all of it at start (50 to 100 ms a GiB), with `prealloc_threads`
    threads at once.

    `huge_pages`: the size of the host's huge pages ("2MiB", "1GiB") that it is made of, by
    an anonymous memfd, or with `mem_path` in that hugetlbfs; as many as it takes must be
    reserved and free. `host_nodes`: NUMA nodes of the host ("0") that it comes from, by
    `policy`: "bind" (there or nowhere), "preferred" (one node, elsewhere when it is full),
    "interleave" (spread); guests with nodes of their own say so in `numa`.
    `merge`: the kernel may merge equal pages (KSM). `dump`: a core dump of QEMU holds it.
    `lock`: none of QEMU's memory is ever swapped; the limit of locked memory must allow it.
    `dimms`: modules beside `size`, each in one of `slots`: what hotplug has added.
    `free_page_reporting`: what the guest does not use any more is given back to the host;
    `deflate_on_oom`: a guest that runs out of memory takes some back from its balloon by
    itself.  Both need `balloon`.
    """

    size: Size = attrs.field(default=Size(512 * MIB), converter=_size)
    maxmem: Size | None = attrs.field(default=None, converter=_maxmem)
    slots: int = 0
    mem_path: str | None = attrs.field(default=None, converter=_optional_path)
    share: bool = False
    prealloc: bool = False
    prealloc_threads: int = 1
    huge_pages: Size | None = attrs.field(default=None, converter=_huge_pages)
    host_nodes: str | None = None
    policy: HostPolicy = "bind"
    merge: bool = True
    dump: bool = True
    lock: bool = False
    dimms: tuple[Dimm, ...] = attrs.field(default=(), converter=to_dimms)
    free_page_reporting: bool = False
    deflate_on_oom: bool = False

    @property
    def total(self) -> Size:
        """Bytes that the guest has: `size` and all of `dimms`."""
        return Size(self.size + sum(dimm.size for dimm in self.dimms))

    @property
    def is_view(self) -> bool:
        """Whether the RAM is a private view of a file, a template's for instance.

        What a guest gives back of it QEMU would cut out of that file, for all who read it.
        """
        return self.mem_path is not None and not self.share and self.huge_pages is None


def to_memory(value: Memory | str | int) -> Memory:
    """A bare size is a memory of that size."""
    return value if isinstance(value, Memory) else Memory(value)


def memory_faults(memory: Memory) -> Iterator[Fault]:
    """Everything that contradicts itself in `memory`."""
    if memory.size < MIB:
        yield Fault("memory.size", f"{format_size(memory.size)} is less than 1MiB")
    elif memory.size % _GRAIN:
        yield Fault("memory.size", f"{format_size(memory.size)} is not a multiple of 8KiB")
    if memory.mem_path == "":
        yield Fault("memory.mem_path", "the path is empty")
    yield from _placing_faults(memory)
    room = (memory.maxmem or memory.size) - memory.size
    yield from dimm_faults(memory.dimms, memory.slots, room)
    if memory.maxmem is None and not memory.slots:
        return
    if memory.maxmem is None or not memory.slots:
        missing = "maxmem" if memory.maxmem is None else "slots"
        yield Fault(f"memory.{missing}", "slots and maxmem are only of use together")
    elif memory.maxmem <= memory.size:
        yield Fault("memory.maxmem", f"{format_size(memory.maxmem)} leaves no room above size")
    elif memory.maxmem % _GRAIN:
        yield Fault("memory.maxmem", f"{format_size(memory.maxmem)} is not a multiple of 8KiB")
    if not 0 <= memory.slots <= _SLOT_LIMIT:
        yield Fault("memory.slots", f"must be from 0 to {_SLOT_LIMIT}, not {memory.slots}")


def _placing_faults(memory: Memory) -> Iterator[Fault]:
    pages = memory.huge_pages
    if pages is not None and (pages < _LEAST_HUGE or pages & (pages - 1)):
        message = f"{format_size(pages)} is no size of huge pages"
        yield Fault("memory.huge_pages", message, '"2MiB" or "1GiB"')
    elif pages is not None and memory.size % pages:
        message = f"{format_size(memory.size)} is not a whole number of pages"
        yield Fault("memory.size", f"{message} of {format_size(pages)}")
    for number, dimm in enumerate(memory.dimms if pages else ()):
        if dimm.size % (pages or 1):
            message = f"{format_size(dimm.size)} is not a whole number of huge pages"
            yield Fault(f"memory.dimms[{number}].size", message)
    if memory.prealloc_threads < 1:
        message = f"must be at least 1, not {memory.prealloc_threads}"
        yield Fault("memory.prealloc_threads", message)
    elif memory.prealloc_threads > 1 and not memory.prealloc:
        yield Fault("memory.prealloc_threads", "are of use with prealloc = true only")
    yield from policy_faults(memory.host_nodes, memory.policy, "memory")


def policy_faults(host_nodes: str | None, policy: HostPolicy, where: str) -> Iterator[Fault]:
    """What is wrong with the nodes of the host that memory is to come from."""
    if host_nodes is None:
        return
    if problem := list_problem(host_nodes):
        yield Fault(f"{where}.host_nodes", problem, '"0" or "0-1"')
    elif policy == "preferred" and len(numbers_of(host_nodes)) > 1:
        yield Fault(f"{where}.host_nodes", "only one node can be preferred", "policy = interleave")


def backend_of(memory: Memory, name: str) -> Json:
    """The `-object` of a machine's RAM, called *name*."""
    backend: dict[str, Any] = {"id": name, "size": int(memory.size)}
    if memory.mem_path is not None:
        backend = {"qom-type": "memory-backend-file", **backend, "mem-path": memory.mem_path}
        # Said even when off: whether a clone may write into its template hangs on it.
        backend["share"] = memory.share
    elif memory.huge_pages is not None:
        backend = {"qom-type": "memory-backend-memfd", **backend, "share": True}
        backend |= {"hugetlb": True, "hugetlbsize": int(memory.huge_pages)}
    elif memory.share:
        backend = {"qom-type": "memory-backend-memfd", **backend, "share": True}
    else:
        backend = {"qom-type": "memory-backend-ram", **backend}
    if memory.prealloc:
        backend["prealloc"] = True
    if memory.prealloc_threads > 1:
        backend["prealloc-threads"] = memory.prealloc_threads
    if memory.host_nodes is not None:
        backend |= {"host-nodes": list(numbers_of(memory.host_nodes)), "policy": memory.policy}
    # QEMU's own defaults are on.
    backend |= {name: False for name in ("merge", "dump") if not getattr(memory, name)}
    return backend


def without_dimm(memory: Memory, dimm_id: str) -> Memory:
    """*memory* without the module of that id, if it has one."""
    return attrs.evolve(memory, dimms=[it for it in memory.dimms if it.id != dimm_id])


def module_backend(memory: Memory, size: Size, name: str) -> Json:
    """The `-object` of a module of *size*, called *name*: made of what the RAM is made of."""
    # A file holds the RAM and nothing else; in a hugetlbfs each backend has one of its own.
    path = memory.mem_path if memory.huge_pages is not None else None
    return backend_of(attrs.evolve(memory, size=size, mem_path=path), name)


def memory_option(memory: Memory) -> str:
    """`-m`, in the largest unit that is exact."""
    pairs: list[tuple[str, str | int]] = [("size", _short(memory.size))]
    if memory.maxmem is not None:
        pairs += [("slots", memory.slots), ("maxmem", _short(memory.maxmem))]
    return keyvals("", pairs)


def _short(size: int) -> str:
    for unit, letter in ((GIB, "G"), (MIB, "M")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return f"{size // KIB}K"
