"""The threads of a running QEMU: which run its vCPUs, which its iothreads, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs
import trio

from qmpkit._trio import ServiceNursery
from qmpkit.errors import HostLacks
from qmpkit.operations._protocols import Changeable
from qmpkit.process.child import ChildLike
from qmpkit.qmp.errors import CommandRefused

__all__ = ["Threads", "Tunable", "find_threads", "process_of"]

_IOTHREAD = "qk-io-"


class Tunable(Changeable, Protocol):
    """A machine with a process."""

    child: ChildLike
    """QEMU's process, or its launcher's."""

    services: ServiceNursery
    """For tasks that live as long as the machine."""

    argv: tuple[str, ...]
    """The command that it was started with."""


@attrs.frozen
class Threads:
    """Thread ids, the kernel's.  `process`: QEMU's process id, which is not its launcher's.

    `vcpus`: by the processor's number; emulated ones may share a thread.  `iothreads`: by
    the names that disks give them.  `emulator`: all others.
    """

    process: int
    vcpus: Mapping[int, int]
    iothreads: Mapping[str, int]
    emulator: tuple[int, ...]


async def find_threads(machine: Tunable) -> Threads:
    """Ask QEMU which thread is what (query-cpus-fast, query-iothreads), and /proc for the rest.

    Raises HostLacks when they cannot be seen, as those of another PID namespace.
    """
    vcpus = {
        int(cpu["cpu-index"]): int(cpu["thread-id"])
        for cpu in await machine.execute("query-cpus-fast")
    }
    iothreads = {
        str(thread["id"]).removeprefix(_IOTHREAD): int(thread["thread-id"])
        for thread in await _iothreads(machine)
    }
    process = await trio.to_thread.run_sync(process_of, machine, vcpus)
    known = {*vcpus.values(), *iothreads.values()}
    every = await trio.to_thread.run_sync(_tasks, process)
    if not known <= set(every):
        what = f"the threads of machine {machine.name!r} are not those that QEMU names"
        raise HostLacks(what, "a launcher without a PID namespace of its own")
    return Threads(process, vcpus, iothreads, tuple(tid for tid in every if tid not in known))


async def _iothreads(machine: Tunable) -> list[Mapping[str, Any]]:
    try:
        return list(await machine.execute("query-iothreads"))
    except CommandRefused:
        return []


def process_of(machine: Tunable, vcpus: Mapping[int, int]) -> int:
    """QEMU's process id, by one of its threads: what we have started may be its launcher."""
    for tid in vcpus.values():
        try:
            status = Path(f"/proc/{tid}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return machine.child.pid


def _tasks(process: int) -> list[int]:
    try:
        return sorted(int(entry.name) for entry in Path(f"/proc/{process}/task").iterdir())
    except OSError as error:
        raise HostLacks(f"the threads of process {process} cannot be seen: {error}") from error
