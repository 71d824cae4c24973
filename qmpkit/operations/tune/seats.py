"""Which thread of a machine sits where, by its spec.  Pure."""

from __future__ import annotations

import attrs

from qmpkit.operations.tune.threads import Threads
from qmpkit.process.scheduling import Seat
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.number_list import numbers_of
from qmpkit.spec.resources import AUTO, Pin

__all__ = ["asks_for_seats", "seats"]

_AS_IT_IS = Seat()


def asks_for_seats(spec: MachineSpec) -> bool:
    """Whether any thread of it has to be found at all."""
    wanted = spec.resources
    pinned = spec.cpu.pin not in (None, AUTO) or wanted.emulator is not None
    scheduled = wanted.policy is not None or wanted.nice is not None
    return pinned or scheduled or bool(wanted.iothreads)


def seats(
    spec: MachineSpec,
    threads: Threads,
    *,
    before: MachineSpec | None = None,
    free: Seat = _AS_IT_IS,
) -> dict[int, Seat]:
    """A seat for each thread that *spec* has something to say of, by thread id.

    What *before* said and *spec* does not is given back: that thread sits as *free*.
    `cpu.pin = "auto"` says nothing here, it is made concrete at a start.
    """
    wanted = _all(spec, threads)
    given_back = {} if before is None else _all(before, threads)
    return {
        tid: _merged(wanted.get(tid, _AS_IT_IS), given_back.get(tid, _AS_IT_IS), free)
        for tid in sorted({*wanted, *given_back})
    }


def _all(spec: MachineSpec, threads: Threads) -> dict[int, Seat]:
    wanted = spec.resources
    found: dict[int, Seat] = {}
    for tid in threads.emulator:
        found[tid] = Seat(_cpus(wanted.emulator), nice=wanted.nice)
    for name, tid in threads.iothreads.items():
        found[tid] = Seat(_cpus(wanted.iothreads.get(name)), nice=wanted.nice)
    for number, tid in threads.vcpus.items():
        places = _cpus(_place(spec.cpu.pin, number))
        known = found.get(tid)
        if known is not None and known.cpus and places:  # emulated in one thread together
            places = tuple(sorted({*known.cpus, *places}))
        found[tid] = Seat(places, wanted.policy, wanted.priority, wanted.nice)
    return {tid: seat for tid, seat in found.items() if seat != _AS_IT_IS}


def _place(pin: Pin, number: int) -> str | None:
    if pin is None or pin == AUTO:
        return None
    if isinstance(pin, str):
        return pin
    return pin[number] if number < len(pin) else None


def _cpus(places: str | None) -> tuple[int, ...] | None:
    return numbers_of(places) if places else None


def _merged(wanted: Seat, given_back: Seat, free: Seat) -> Seat:
    if wanted.cpus is None and given_back.cpus is not None:
        wanted = attrs.evolve(wanted, cpus=free.cpus)
    if wanted.policy is None and given_back.policy is not None:
        wanted = attrs.evolve(wanted, policy=free.policy, priority=free.priority)
    if wanted.nice is None and given_back.nice is not None:
        wanted = attrs.evolve(wanted, nice=free.nice)
    return wanted
