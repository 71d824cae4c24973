"""What this host has for machines now, and what a machine takes of it."""

from __future__ import annotations

import os
from contextlib import suppress
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


def demand_of(spec: MachineSpec) -> Demand:
    """What a machine of *spec* takes; asks the file system of its `mem_path`, if it has one."""
    size, cpus, path = int(spec.memory.size), spec.cpu.cpus, spec.memory.mem_path
    page = 0
    if path is not None:
        with suppress(OSError):
            page = os.statvfs(path).f_bsize  # of hugetlbfs: its page
    if page < _SMALLEST_HUGE_PAGE:
        return Demand(memory=size + QEMU_SHARE, cpus=cpus)
    return Demand(memory=QEMU_SHARE, cpus=cpus, huge_pages=-(-size // page), page_size=page)


def host_now() -> Host:
    """What the host tells at this moment: some short reads of /proc and /sys, which never wait."""
    meminfo = _meminfo()
    total = meminfo.get("MemTotal", 0) - _HOST_SHARE
    free = meminfo.get("MemAvailable", 0) - _HOST_SHARE
    return Host(
        memory=Pool(total, free),
        cpus=Pool.whole((os.cpu_count() or 1) * _CPUS_PROMISED),
        huge_pages=_huge_pages(),
    )


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * KIB
    return found


def _huge_pages() -> dict[int, Pool]:
    pools = {}
    with suppress(OSError):
        for pool in _POOLS.iterdir():
            size = int(pool.name.removeprefix("hugepages-").removesuffix("kB")) * KIB
            total, free = (int((pool / f).read_text()) for f in ("nr_hugepages", "free_hugepages"))
            if total:
                pools[size] = Pool(total, free)
    return pools
