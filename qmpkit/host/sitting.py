"""Who sits where: the machines of this host, and the processors that their threads may use.

Found in /proc by QEMU's own command line and by the names that it gives to its threads
(`debug-threads=on`), whoever has started them.  Blocking.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs

from qmpkit.host.holders import machine_in
from qmpkit.host.kvm import read_text
from qmpkit.spec.number_list import numbers_of

__all__ = ["Sitting", "Thread", "occupied", "sittings"]

_VCPU = re.compile(r"CPU (\d+)/", re.ASCII)


@attrs.frozen
class Thread:
    """A thread of QEMU's: `vcpu` is its number when it is one, `allowed` where it may run."""

    tid: int
    name: str
    vcpu: int | None
    allowed: tuple[int, ...]


@attrs.frozen
class Sitting:
    """One QEMU: the machine's name ("" when it has none), its process, its threads."""

    machine: str
    pid: int
    threads: tuple[Thread, ...]

    @property
    def vcpus(self) -> tuple[Thread, ...]:
        """Those that run the guest, in the order of its processors."""
        found = [it for it in self.threads if it.vcpu is not None]
        return tuple(sorted(found, key=lambda it: it.vcpu or 0))


def sittings(root: Path = Path("/")) -> tuple[Sitting, ...]:
    """Every QEMU that we may look into; blocking, about 1 ms a machine."""
    return tuple(sorted(_sittings(root), key=lambda it: (it.machine, it.pid)))


def _sittings(root: Path) -> Iterator[Sitting]:
    for process in (root / "proc").glob("[0-9]*"):
        try:
            argv = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
        except OSError:
            continue
        if argv[0].rpartition("/")[2].startswith("qemu-system-") and (
            threads := tuple(_threads(process))
        ):
            yield Sitting(machine_in(argv), int(process.name), threads)


def _threads(process: Path) -> Iterator[Thread]:
    folder = process / "task"
    tids = [name.name for name in folder.iterdir()] if folder.is_dir() else []
    for tid in sorted(map(int, tids)):
        status = _status(folder / str(tid) / "status")
        name = status.get("Name", "")
        found = _VCPU.match(name)
        try:
            allowed = numbers_of(status.get("Cpus_allowed_list", ""))
        except ValueError:
            allowed = ()
        if name:
            yield Thread(tid, name, int(found[1]) if found else None, allowed)


def _status(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in read_text(path, 8192).splitlines())
    return {key: value.strip() for key, _, value in lines}


def occupied(found: tuple[Sitting, ...], online: int) -> Counter[int]:
    """How many vCPUs are pinned to each processor; one that may use all *online* is not."""
    taken: Counter[int] = Counter()
    for sitting in found:
        for thread in sitting.vcpus:
            if len(thread.allowed) < online:
                taken.update(thread.allowed)
    return taken
