"""Where in a machine's topology a processor sits that is plugged beside those of its start."""

from __future__ import annotations

from typing import NamedTuple

from qmpkit.spec.cpu import Cpu
from qmpkit.spec.options import Json

__all__ = ["CpuPlace", "cpu_device", "cpu_id", "place_of"]


class CpuPlace(NamedTuple):
    """Socket, core and thread, each from 0 on; in QEMU's terms socket-id, core-id, thread-id."""

    socket: int
    core: int
    thread: int


def cpu_id(number: int) -> str:
    """The device that is the processor of that number."""
    return f"cpu{number}"


def place_of(cpu: Cpu, number: int) -> CpuPlace:
    """Where the processor of that number sits, as QEMU counts: threads first, sockets last.

    What the topology leaves out is as machine types since 6.2 have it: few sockets.  Pure.
    """
    limit = cpu.maxcpus or cpu.cpus
    if cpu.cores is None:
        threads = cpu.threads or 1
        cores = max(1, limit // ((cpu.sockets or 1) * threads))
    else:
        cores = cpu.cores
        free = cpu.threads is None and cpu.sockets is not None
        threads = max(1, limit // ((cpu.sockets or 1) * cores)) if free else cpu.threads or 1
    core, thread = divmod(number, threads)
    return CpuPlace(*divmod(core, cores), thread)


def cpu_device(cpu: Cpu, number: int, model: str) -> Json:
    """The `-device` that is the processor of that number; *model* as `-cpu` has it (x86)."""
    place = place_of(cpu, number)
    return {
        "driver": f"{model}-x86_64-cpu",
        "id": cpu_id(number),
        "socket-id": place.socket,
        "core-id": place.core,
        "thread-id": place.thread,
    }
