"""What a machine is given of its host: processors for its threads, and limits for all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.given import items_of, table_of
from qmpkit.spec.number_list import list_problem
from qmpkit.spec.sizes import Size, to_bytes

__all__ = [
    "AUTO",
    "IoMax",
    "Pin",
    "Policy",
    "Resources",
    "cgroup_files",
    "controllers",
    "pin_faults",
    "resource_faults",
    "to_pin",
]

AUTO = "auto"

Policy = Literal["other", "batch", "idle", "fifo", "rr"]
Pin = str | tuple[str, ...] | None
"""Where vCPUs run: "auto", a list of processors for all of them, or a list for each."""

_REALTIME = ("fifo", "rr")
_DEVICE = re.compile(r"\d+:\d+|/[^\0\n]+", re.ASCII)
_PERIOD = 100_000  # microseconds, the kernel's default


def to_pin(value: str | Iterable[str] | None) -> Pin:
    """A text as it is, and any list of texts as a tuple."""
    if value is None or isinstance(value, str):
        return value
    return items_of(value, "cpu.pin", '["2", "3"]', (str,))


def _size(value: str | int | None) -> Size | None:
    return None if value is None else to_bytes(value, "resources")


def _threads(value: Mapping[str, str]) -> dict[str, str]:
    return table_of(value, "resources.iothreads")


@attrs.frozen(kw_only=True)
class IoMax:
    """What the machine may do to one block device of the host ("/dev/sda" or "8:0") a second.

    `rbps`, `wbps`: bytes read and written; `riops`, `wiops`: reads and writes.  None is no limit.
    """

    device: str
    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None


def _limits(value: Iterable[IoMax]) -> tuple[IoMax, ...]:
    return items_of(value, "resources.io_max", 'IoMax(device="/dev/sda", wiops=500)', (IoMax,))


@attrs.frozen(kw_only=True)
class Resources:
    """Beside `cpu.pin`, where the other threads of QEMU run, how they are scheduled, and limits.

    `emulator`: the processors of the threads that are neither vCPU nor iothread ("0-1");
    None is anywhere, or beside the vCPUs with `cpu.pin = "auto"`.  `iothreads`: those of
    iothreads, by the names that disks give them.  `policy`: the scheduler's for vCPUs, of
    which "fifo" and "rr" take a `priority` from 1 to 99 and the right to it.  `nice`: of
    all threads, -20 to 19.

    The rest are limits of the machine's control group (cgroup v2), which is made when one
    of them is given.  `cpu_max`: processors, 1.5 is one and a half.  `cpu_weight`: its share
    when the host is busy, 1 to 10000, 100 is usual.  `memory_max`: above it the kernel kills
    QEMU; `memory_high`: above it QEMU is slowed and its pages taken.  Both count QEMU's own
    memory too, 100 to 200 MiB above the guest's.  `pids_max`: threads.  `io_max`: for each device.
    """

    emulator: str | None = None
    iothreads: dict[str, str] = attrs.field(factory=dict, converter=_threads)
    policy: Policy | None = None
    priority: int = 0
    nice: int | None = None
    cpu_max: float | None = None
    cpu_weight: int | None = None
    memory_max: Size | None = attrs.field(default=None, converter=_size)
    memory_high: Size | None = attrs.field(default=None, converter=_size)
    pids_max: int | None = None
    io_max: tuple[IoMax, ...] = attrs.field(default=(), converter=_limits)


def controllers(resources: Resources) -> tuple[str, ...]:
    """The controllers of cgroup v2 that its limits need; none of them, and it needs no group."""
    wanted = {
        "cpu": resources.cpu_max is not None or resources.cpu_weight is not None,
        "memory": resources.memory_max is not None or resources.memory_high is not None,
        "io": bool(resources.io_max),
        "pids": resources.pids_max is not None,
    }
    return tuple(name for name, needed in wanted.items() if needed)


def cgroup_files(resources: Resources) -> dict[str, str]:
    """Every file of a group that these controllers have, with what is to stand in it.

    What is not limited stands there too, so that a limit that is taken back is gone;
    `io.max` is apart, because its devices have to be looked up.
    """
    files: dict[str, str] = {}
    wanted = controllers(resources)
    if "cpu" in wanted:
        files["cpu.max"] = f"{_quota(resources.cpu_max)} {_PERIOD}"
        files["cpu.weight"] = str(resources.cpu_weight or 100)
    if "memory" in wanted:
        files["memory.high"] = _or_max(resources.memory_high)
        files["memory.max"] = _or_max(resources.memory_max)
    if "pids" in wanted:
        files["pids.max"] = _or_max(resources.pids_max)
    return files


def _quota(cpus: float | None) -> str:
    return "max" if cpus is None else str(round(cpus * _PERIOD))


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(int(value))


def pin_faults(pin: Pin, vcpus: int) -> Iterator[Fault]:
    """What is wrong with `cpu.pin` of a machine that has room for *vcpus* processors."""
    if pin is None or pin == AUTO:
        return
    if isinstance(pin, str):
        if problem := list_problem(pin):
            yield Fault("cpu.pin", problem, '"auto", "2-5", or one list for each: ["2", "3"]')
        return
    if len(pin) > vcpus:
        yield Fault("cpu.pin", f"{len(pin)} places are more than the {vcpus} processors")
    for number, places in enumerate(pin):
        if places and (problem := list_problem(places)):  # an empty one is not pinned
            yield Fault(f"cpu.pin[{number}]", problem, '"2" or "2-3"')


def resource_faults(resources: Resources, iothreads: Iterable[str]) -> Iterator[Fault]:
    """Everything that contradicts itself; *iothreads*: the names that its disks give."""
    at = "resources"
    if resources.emulator is not None and (problem := list_problem(resources.emulator)):
        yield Fault(f"{at}.emulator", problem, '"0-1"')
    known = set(iothreads)
    for name, places in resources.iothreads.items():
        if name not in known:
            hint = f"there are {', '.join(sorted(known))}" if known else "no disk has one"
            yield Fault(f"{at}.iothreads.{name}", "no disk has an iothread of that name", hint)
        elif problem := list_problem(places):
            yield Fault(f"{at}.iothreads.{name}", problem, '"0-1"')
    yield from _scheduling_faults(resources)
    yield from _limit_faults(resources)


def _scheduling_faults(resources: Resources) -> Iterator[Fault]:
    realtime = resources.policy in _REALTIME
    if realtime and not 1 <= resources.priority <= 99:
        message = f"{resources.policy} takes one from 1 to 99, not {resources.priority}"
        yield Fault("resources.priority", message)
    elif not realtime and resources.priority:
        yield Fault("resources.priority", 'is of use with policy "fifo" or "rr" only')
    if resources.nice is not None and not -20 <= resources.nice <= 19:
        yield Fault("resources.nice", f"is from -20 to 19, not {resources.nice}")


def _limit_faults(resources: Resources) -> Iterator[Fault]:
    cpus = resources.cpu_max
    if cpus is not None and not 0.01 <= cpus <= 100_000:
        yield Fault("resources.cpu_max", f"is a number of processors, 0.01 or more, not {cpus:g}")
    weight = resources.cpu_weight
    if weight is not None and not 1 <= weight <= 10_000:
        yield Fault("resources.cpu_weight", f"is from 1 to 10000, not {weight}")
    if resources.pids_max is not None and resources.pids_max < 1:
        yield Fault("resources.pids_max", f"must be at least 1, not {resources.pids_max}")
    high, most = resources.memory_high, resources.memory_max
    if high is not None and most is not None and high > most:
        yield Fault("resources.memory_high", "is above memory_max, so it has no effect")
    for number, limit in enumerate(resources.io_max):
        yield from _io_faults(limit, f"resources.io_max[{number}]")


def _io_faults(limit: IoMax, where: str) -> Iterator[Fault]:
    if not _DEVICE.fullmatch(limit.device):
        yield Fault(f"{where}.device", f"{limit.device!r} is no device", '"/dev/sda" or "8:0"')
    rates = (limit.rbps, limit.wbps, limit.riops, limit.wiops)
    if all(rate is None for rate in rates):
        yield Fault(where, "limits nothing", "rbps, wbps, riops or wiops")
    if any(rate is not None and rate < 1 for rate in rates):
        yield Fault(where, "a limit is at least 1 a second")
