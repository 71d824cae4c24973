"""The balloon: memory that a guest gives back while it runs, and what it tells of its own."""

from __future__ import annotations

from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, GuestRefused, SpecInvalid
from qmpkit.operations._protocols import Changeable, Monitor
from qmpkit.operations.hotplug.unplug import PERIPHERAL, machine_runs
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.qmp.events import Subscription
from qmpkit.spec.sizes import MIB, Size, format_size, to_bytes

__all__ = ["BALLOON_GRACE", "GuestMemoryUse", "ask_statistics", "balloon", "balloon_size"]

BALLOON_GRACE = 30.0
"""Seconds in which a guest follows: 1 GiB takes it some 1 to 3."""

_PATH = f"{PERIPHERAL}/balloon0"
_PAGE = 4096
_LOOK = 0.05  # seconds: nothing tells that the guest has answered
_INTERVAL = "guest-stats-polling-interval"
_UNKNOWN = (1 << 64) - 1


@attrs.frozen(kw_only=True)
class GuestMemoryUse:
    """What a guest tells of its memory, in bytes; None is what it does not tell.

    `available` is what programs can have without swapping, `caches` those of its disks.
    `swapped_in`, `swapped_out`, `major_faults` and `minor_faults` (numbers) are since its boot.
    """

    total: int | None
    free: int | None
    available: int | None
    caches: int | None
    swapped_in: int | None
    swapped_out: int | None
    major_faults: int | None
    minor_faults: int | None


_NAMES = {
    "total": "total-memory",
    "free": "free-memory",
    "available": "available-memory",
    "caches": "disk-caches",
    "swapped_in": "swap-in",
    "swapped_out": "swap-out",
    "major_faults": "major-faults",
    "minor_faults": "minor-faults",
}


def _require(machine: Changeable) -> None:
    if not machine.spec.balloon:
        fault = Fault("balloon", "it has none", "start it with balloon = true")
        raise SpecInvalid([fault], f"machine {machine.name!r}")


def _refuse_view(machine: Changeable) -> None:
    memory = machine.spec.memory
    if memory.is_view:
        message = f"QEMU would cut what the guest gives back out of {memory.mem_path!r}"
        fault = Fault("memory.mem_path", message, "start it without, or with memory.share = true")
        raise SpecInvalid([fault], f"machine {machine.name!r}")


async def balloon_size(machine: Changeable) -> Size:
    """What the balloon leaves to the guest (`query-balloon`)."""
    _require(machine)
    return Size((await machine.execute("query-balloon"))["actual"])


async def balloon(machine: Changeable, size: int | str, grace: float) -> None:
    """See `GuestMemory.balloon`."""
    _require(machine)
    _refuse_view(machine)
    wanted = to_bytes(size, "size")
    async with machine.changing:
        total = machine.spec.memory.total
        if not MIB <= wanted <= total or wanted % _PAGE:
            message = f"{format_size(wanted)} is not from 1MiB to {format_size(total)}, in pages"
            raise SpecInvalid([Fault("size", message)], f"machine {machine.name!r}")
        if not await machine_runs(machine):
            raise GuestRefused(machine.name, _asked(wanted), "it stands still")
        with machine.subscribe("BALLOON_CHANGE") as events:
            before = await balloon_size(machine)
            try:
                await machine.execute("balloon", {"value": wanted})
                await _followed(machine, events, wanted, grace)
            except BaseException:
                with trio.move_on_after(STEP_GRACE, shield=True):
                    await machine.execute("balloon", {"value": before})
                raise


def _asked(wanted: int) -> str:
    return f"to come to {format_size(wanted)} of memory"


async def _followed(machine: Changeable, events: Subscription, wanted: int, grace: float) -> None:
    with trio.move_on_after(grace):
        while await balloon_size(machine) != wanted:
            await events.next()
        return
    now = format_size(await balloon_size(machine))
    why = f"it had come to {now} within {grace:g} s"
    raise GuestRefused(machine.name, _asked(wanted), why)


async def ask_statistics(machine: Changeable, grace: float) -> GuestMemoryUse:
    """See `GuestMemory.statistics`."""
    _require(machine)
    before = (await _told(machine))["last-update"]
    interval = await machine.execute("qom-get", {"path": _PATH, "property": _INTERVAL})
    try:
        await _poll_each(machine, 1)
        with trio.move_on_after(grace):
            while True:
                told = await _told(machine)
                if told["last-update"] not in (0, before):
                    return _use(told["stats"])
                await trio.sleep(_LOOK)
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await _poll_each(machine, interval)
    why = f"it said nothing within {grace:g} s: it has not booted, or has no driver for it"
    raise GuestRefused(machine.name, "to tell of its memory", why)


async def _poll_each(machine: Monitor, seconds: int) -> None:
    words = {"path": _PATH, "property": _INTERVAL, "value": seconds}
    await machine.execute("qom-set", words)


async def _told(machine: Monitor) -> dict[str, Any]:
    words = {"path": _PATH, "property": "guest-stats"}
    found: dict[str, Any] = await machine.execute("qom-get", words)
    return found


def _use(stats: dict[str, int]) -> GuestMemoryUse:
    values = {name: stats.get(f"stat-{key}", _UNKNOWN) for name, key in _NAMES.items()}
    return GuestMemoryUse(**{k: None if v in (_UNKNOWN, -1) else v for k, v in values.items()})
