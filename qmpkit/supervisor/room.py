"""What this host has for machines now, and what a machine takes of it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.sizes import KIB, MIB
from qmpkit.supervisor.admission import Demand, Host, Pool

__all__ = ["QEMU_SHARE", "demand_of", "host_now"]

QEMU_SHARE = 32 * MIB
"""Bytes that a QEMU takes beside its guest's memory, roughly."""

_HOST_SHARE = 256 * MIB  # kept for the host itself
_CPUS_PROMISED = 100  # vCPUs to each CPU: what guests take of it, they share
_SMALLEST_HUGE_PAGE = 64 * KIB
_POOLS = Path("/sys/kernel/mm/hugepages")
_MEMINFO = re.compile(rb"^(MemTotal|MemAvailable): +([0-9]+) kB$", re.MULTILINE)


def demand_of(spec: MachineSpec) -> Demand:
    """What a machine of *spec* takes; asks the file system of its `mem_path`, if it has one."""
    size, cpus, path = spec.most_memory, spec.cpu.present, spec.memory.mem_path
    page = 0
    if path is not None:
        with suppress(OSError):
            page = os.statvfs(path).f_bsize  # of hugetlbfs: its page
    return _demand(size, cpus, page if page >= _SMALLEST_HUGE_PAGE else 0)


@lru_cache  # of those that take the same there is one, for it is compared often
def _demand(size: int, cpus: int, page: int) -> Demand:
    if not page:
        return Demand(memory=size + QEMU_SHARE, cpus=cpus)
    return Demand(memory=QEMU_SHARE, cpus=cpus, huge_pages=-(-size // page), page_size=page)


def host_now(pages: Collection[int] = ()) -> Host:
    """What the host tells at this moment: some short reads of /proc and /sys, which never wait.

    Of huge pages, those of the sizes *pages*, in bytes.
    """
    meminfo = {name: int(kib) * KIB for name, kib in _MEMINFO.findall(_read("/proc/meminfo"))}
    total = meminfo.get(b"MemTotal", 0) - _HOST_SHARE
    free = meminfo.get(b"MemAvailable", 0) - _HOST_SHARE
    pools = {size: pool for size in pages if (pool := _huge_pages(size)) is not None}
    return Host(
        memory=Pool(total, free),
        cpus=Pool.whole((os.cpu_count() or 1) * _CPUS_PROMISED),
        huge_pages=pools,
    )


def _huge_pages(size: int) -> Pool | None:
    """Those of one size; None when the host has none."""
    folder = _POOLS / f"hugepages-{size // KIB}kB"
    with suppress(OSError):
        total, free = (int(_read(folder / name)) for name in ("nr_hugepages", "free_hugepages"))
        return Pool(total, free) if total else None
    return None


def _read(path: str | Path) -> bytes:
    # At every start, so without the layers of a text file.
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()
