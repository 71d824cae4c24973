"""Where one thread of a process runs, and how it is scheduled: read, changed, put back.

Blocking: a system call or three a thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

import attrs

from qmpkit.errors import HostLacks

__all__ = ["Seat", "put_back", "seat_all", "seat_of", "take_seat"]

_POLICIES = {
    "other": os.SCHED_OTHER,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
}
_NAMES = {number: name for name, number in _POLICIES.items()}


@attrs.frozen
class Seat:
    """A thread's processors, its scheduling policy and priority, its niceness; None: as it is."""

    cpus: tuple[int, ...] | None = None
    policy: str | None = None
    priority: int = 0
    nice: int | None = None


Before = Sequence[tuple[int, Seat]]


def seat_of(tid: int) -> Seat:
    """How a thread sits now; ProcessLookupError when it has ended."""
    flags = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
    return Seat(
        tuple(sorted(os.sched_getaffinity(tid))),
        _NAMES.get(flags),
        os.sched_getparam(tid).sched_priority,
        os.getpriority(os.PRIO_PROCESS, tid),
    )


def take_seat(tid: int, seat: Seat) -> None:
    """Change what *seat* says; ProcessLookupError when the thread has ended, else OSError."""
    if seat.cpus is not None:
        os.sched_setaffinity(tid, seat.cpus)
    if seat.policy is not None:
        os.sched_setscheduler(tid, _POLICIES[seat.policy], os.sched_param(seat.priority))
    if seat.nice is not None:
        os.setpriority(os.PRIO_PROCESS, tid, seat.nice)


def seat_all(wanted: Mapping[int, Seat]) -> Before:
    """Seat each thread (by tid) as it is wanted; how they sat before, for `put_back`.

    Threads that have ended meanwhile are left out.  Raises HostLacks, and then all sit as
    before.
    """
    before: list[tuple[int, Seat]] = []
    try:
        for tid, seat in wanted.items():
            with suppress(ProcessLookupError):
                before.append((tid, seat_of(tid)))
                _take(tid, seat)
    except HostLacks:
        put_back(before)
        raise
    return before


def put_back(before: Before) -> None:
    """Take back what `seat_all` did."""
    for tid, seat in reversed(before):
        with suppress(OSError):  # it has ended, or a right that was given up is not had back
            take_seat(tid, seat)


def _take(tid: int, seat: Seat) -> None:
    try:
        take_seat(tid, seat)
    except PermissionError as error:
        what = f"we may not schedule the thread {tid} so: {error.strerror}"
        raise HostLacks(what, "run as root, or with CAP_SYS_NICE") from error
    except OSError as error:
        if isinstance(error, ProcessLookupError):
            raise
        what = f"the thread {tid} cannot be put on the processors {seat.cpus}: {error.strerror}"
        raise HostLacks(what, "name some that this host has and that we may use") from error
