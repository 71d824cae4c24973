"""`vm.stats()`: what a machine has used, counted by QEMU and by the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations.tune.threads import Threads, Tunable, find_threads
from qmpkit.operations.tune.usage import (
    MemoryUse,
    NicUse,
    ThreadTime,
    memory_use,
    nic_use,
    tap_of,
    thread_time,
)
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.sizes import MIB

__all__ = ["DiskUse", "Rates", "Stats", "stats_of"]

_PERIPHERAL = "/machine/peripheral/"
_DIRTY_LIMIT = 60  # seconds, QEMU's own
_ASK_AGAIN = 0.05  # seconds after which a measurement that is over takes its last step


@attrs.frozen
class DiskUse:
    """What the guest has read and written of a disk: bytes, operations, seconds they took."""

    read: int = 0
    written: int = 0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    read_time: float = 0.0
    write_time: float = 0.0


@attrs.frozen(kw_only=True)
class Rates:
    """What was used between two `Stats`, for each second of the `seconds` between them.

    `cpu`: processors that QEMU kept busy altogether, `vcpus` each of the guest's (0 to 1),
    `waited` how many more would have been (`ThreadTime.waited`).  `disks`, `nics`: as
    `DiskUse` and `NicUse`, a second.
    """

    seconds: float
    cpu: float
    waited: float
    vcpus: Mapping[int, float]
    disks: Mapping[str, DiskUse]
    nics: Mapping[str, NicUse]


@attrs.frozen(kw_only=True)
class Stats:
    """Counters of one machine since its QEMU was started, but for `time` and `memory`.

    `time`: when they were read, on a clock that only tells differences, in seconds.
    `vcpus`: by number, `iothreads` by the names that disks give them, `emulator` the rest of
    QEMU.  `disks`: by id; `nics`: by id, of those that are tap devices.  `kvm`: what KVM counts
    (query-stats, QEMU 7.1), of vCPUs together; empty under TCG.  `dirty_rate`: bytes of
    memory that the guest changes a second, when that was asked for and could be measured.
    """

    machine: str
    time: float
    vcpus: Mapping[int, ThreadTime]
    iothreads: Mapping[str, ThreadTime]
    emulator: ThreadTime
    memory: MemoryUse
    disks: Mapping[str, DiskUse]
    nics: Mapping[str, NicUse]
    kvm: Mapping[str, int]
    dirty_rate: float | None = None

    @property
    def cpu(self) -> ThreadTime:
        """All threads together."""
        return sum([*self.vcpus.values(), *self.iothreads.values()], start=self.emulator)

    def since(self, earlier: Stats) -> Rates:
        """What was used since *earlier*, which is of the same run of the machine."""
        seconds = max(self.time - earlier.time, 1e-9)
        cpu = self.cpu - earlier.cpu
        return Rates(
            seconds=seconds,
            cpu=cpu.total / seconds,
            waited=cpu.waited / seconds,
            vcpus={
                number: (spent - earlier.vcpus[number]).total / seconds
                for number, spent in self.vcpus.items()
                if number in earlier.vcpus
            },
            disks=_per_second(self.disks, earlier.disks, seconds),
            nics=_per_second(self.nics, earlier.nics, seconds),
        )


def _per_second(now: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> Any:
    """What was plugged in between has no rate yet."""
    return {
        name: type(use)(
            *(
                (value - old) / seconds
                for value, old in zip(attrs.astuple(use), attrs.astuple(before[name]), strict=True)
            )
        )
        for name, use in now.items()
        if name in before
    }


async def stats_of(machine: Tunable, *, dirty_rate: float = 0.0, pss: bool = True) -> Stats:
    """See `VM.stats`; without *pss* the kernel need not walk all of a machine's memory."""
    if dirty_rate and not (dirty_rate == int(dirty_rate) and 1 <= dirty_rate <= _DIRTY_LIMIT):
        message = f"is measured for 1 to {_DIRTY_LIMIT} whole seconds, not {dirty_rate:g}"
        raise SpecInvalid([Fault("dirty_rate", message)], f"machine {machine.name!r}")
    rate = await _dirty_rate(machine, int(dirty_rate)) if dirty_rate else None
    threads = await find_threads(machine)
    blocks = await machine.execute("query-blockstats")
    balloon = await _balloon(machine)
    kvm = await _kvm(machine)
    seen = await trio.to_thread.run_sync(_read, machine, threads, pss)
    return attrs.evolve(
        seen,
        time=trio.current_time(),
        memory=attrs.evolve(seen.memory, balloon=balloon),
        disks=dict(_disks(blocks)),
        kvm=kvm,
        dirty_rate=rate,
    )


def _read(machine: Tunable, threads: Threads, pss: bool) -> Stats:
    process = threads.process
    taps = {nic.id: tap_of(nic, process, machine.argv) for nic in machine.spec.nics}
    nics = {name: nic_use(tap) for name, tap in taps.items() if tap is not None}
    return Stats(
        machine=machine.name,
        time=0.0,
        vcpus={number: thread_time(process, [tid]) for number, tid in threads.vcpus.items()},
        iothreads={name: thread_time(process, [tid]) for name, tid in threads.iothreads.items()},
        emulator=thread_time(process, threads.emulator),
        memory=memory_use(process, pss=pss),
        disks={},
        nics={name: use for name, use in nics.items() if use is not None},
        kvm={},
    )


def _disks(blocks: list[Mapping[str, Any]]) -> Iterator[tuple[str, DiskUse]]:
    for block in blocks:
        device = block.get("qdev", "").removeprefix(_PERIPHERAL).removesuffix("/virtio-backend")
        if not device or "/" in device:
            continue
        stats = block["stats"]
        yield (
            device,
            DiskUse(
                stats["rd_bytes"],
                stats["wr_bytes"],
                stats["rd_operations"],
                stats["wr_operations"],
                stats["flush_operations"],
                stats["rd_total_time_ns"] / 1e9,
                stats["wr_total_time_ns"] / 1e9,
            ),
        )


async def _balloon(machine: Tunable) -> int | None:
    if not machine.spec.balloon:
        return None
    try:
        return int((await machine.execute("query-balloon"))["actual"])
    except CommandRefused:
        return None


async def _kvm(machine: Tunable) -> dict[str, int]:
    """KVM's counters by name; those of vCPUs are added up."""
    found: dict[str, int] = {}
    for target in ("vm", "vcpu"):
        with suppress(CommandRefused):  # a QEMU or an accelerator that counts nothing
            for part in await machine.execute("query-stats", {"target": target}):
                for stat in part["stats"]:
                    if isinstance(stat["value"], int):  # the others are histograms
                        found[stat["name"]] = found.get(stat["name"], 0) + stat["value"]
    return found


async def _dirty_rate(machine: Tunable, seconds: int) -> float | None:
    """Measured by QEMU, by samples of pages (calc-dirty-rate).  No event tells its end."""
    await machine.execute("calc-dirty-rate", {"calc-time": seconds})
    await trio.sleep(seconds)
    while True:
        found = await machine.execute("query-dirty-rate")
        if found["status"] != "measuring":
            rate = found.get("dirty-rate", -1)
            return None if rate < 0 else float(rate * MIB)
        await trio.sleep(_ASK_AGAIN)
