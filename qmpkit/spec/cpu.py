"""The processors of a machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.given import items_of
from qmpkit.spec.options import keyvals
from qmpkit.spec.resources import Pin, pin_faults, to_pin

__all__ = ["CPU_LIMIT", "Cpu", "cpu_faults", "cpu_option", "model_of", "smp_option"]
__all__ += ["to_cpu"]

CPU_LIMIT = 255
"""More need an IOMMU with interrupt remapping, which no profile sets up."""

_FLAG = re.compile(r"[+-][A-Za-z0-9._-]+|[A-Za-z0-9._-]+=[^\0\n]*", re.ASCII)
_MODEL = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


def _flags(value: Iterable[str]) -> tuple[str, ...]:
    return items_of(value, "cpu.flags", '["+x2apic"]')


def _numbers(value: Iterable[int]) -> tuple[int, ...]:
    return items_of(value, "cpu.added", "[2, 3]", (int,))


@attrs.frozen
class Cpu:
    """`cpus` processors at start, room for `maxcpus` by hotplug (default: `cpus`).

    `model` None is "host" under KVM, and what serves the board best under TCG ("max"
    on a PC); `flags` are "+name", "-name" or "name=value". `sockets`, `cores` and
    `threads` fix the topology of `maxcpus`; left out, QEMU chooses.
    `pin`: the processors of the host that they run on: "auto" for some of one NUMA node that
    has room for the machine, a list for all of them ("2-5"), or one for each, from the first
    on (["2", "3"]).
    `added`: numbers of processors beside the first `cpus`, each below `maxcpus`: what hotplug
    has added.
    """

    cpus: int = 1
    maxcpus: int | None = None
    model: str | None = None
    flags: tuple[str, ...] = attrs.field(default=(), converter=_flags)
    sockets: int | None = None
    cores: int | None = None
    threads: int | None = None
    pin: Pin = attrs.field(default=None, converter=to_pin)
    added: tuple[int, ...] = attrs.field(default=(), converter=_numbers)

    @property
    def present(self) -> int:
        """How many there are: `cpus`, and those that were added."""
        return self.cpus + len(self.added)


def to_cpu(value: Cpu | int) -> Cpu:
    """A bare number is the number of processors."""
    return value if isinstance(value, Cpu) else Cpu(value)


def cpu_faults(cpu: Cpu) -> Iterator[Fault]:
    """Everything that contradicts itself in `cpu`."""
    limit = cpu.maxcpus if cpu.maxcpus is not None else cpu.cpus
    if cpu.cpus < 1:
        yield Fault("cpu.cpus", f"a machine has at least one processor, not {cpu.cpus}")
    elif limit < cpu.cpus:
        yield Fault("cpu.maxcpus", f"{limit} is less than the {cpu.cpus} of cpus")
    elif limit > CPU_LIMIT:
        name = "cpu.cpus" if cpu.maxcpus is None else "cpu.maxcpus"
        yield Fault(name, f"{limit} processors are more than the {CPU_LIMIT} supported")
    yield from _added_faults(cpu, limit)
    yield from _topology_faults(cpu, limit)
    yield from pin_faults(cpu.pin, limit)
    if cpu.model is not None and not _MODEL.fullmatch(cpu.model):
        yield Fault("cpu.model", f"{cpu.model!r} is not a CPU model", "flags go into cpu.flags")
    for number, flag in enumerate(cpu.flags):
        if not _FLAG.fullmatch(flag):
            yield Fault(f"cpu.flags[{number}]", f"{flag!r} is not '+name', '-name' or 'name=value'")


def _added_faults(cpu: Cpu, limit: int) -> Iterator[Fault]:
    for place, number in enumerate(cpu.added):
        where = f"cpu.added[{place}]"
        if number in cpu.added[:place]:
            yield Fault(where, f"processor {number} is in it twice")
        elif not cpu.cpus <= number < limit:
            message = f"processor {number} is not between the {cpu.cpus} of cpus and maxcpus"
            yield Fault(where, message, f"they are numbered from 0; maxcpus is {limit}")


def _topology_faults(cpu: Cpu, limit: int) -> Iterator[Fault]:
    product = 1
    for name in ("sockets", "cores", "threads"):
        count: int | None = getattr(cpu, name)
        if count is not None and count < 1:
            yield Fault(f"cpu.{name}", f"must be at least 1, not {count}")
            return
        product *= count or 1
    given = None not in (cpu.sockets, cpu.cores, cpu.threads)
    if (given and product != limit) or (limit > 0 and limit % product):
        yield Fault(
            "cpu",
            f"sockets x cores x threads is {product}, which does not make {limit} processors",
            "the topology describes maxcpus (without it: cpus)",
        )


def model_of(cpu: Cpu, accel: str, tcg_model: str) -> str:
    """The model *cpu* is, chosen where it is left out."""
    return cpu.model or ("host" if accel == "kvm" else tcg_model)


def cpu_option(cpu: Cpu, model: str, host_flags: tuple[str, ...]) -> str:
    """`-cpu`: the model, then what the host needs, then the user's flags, which win."""
    return ",".join((model, *host_flags, *(flag.replace(",", ",,") for flag in cpu.flags)))


def smp_option(cpu: Cpu) -> str:
    """`-smp`."""
    pairs = [(name, getattr(cpu, name)) for name in ("maxcpus", "sockets", "cores", "threads")]
    return keyvals("", [("cpus", cpu.cpus), *pairs])
