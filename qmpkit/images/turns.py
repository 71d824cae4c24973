"""How many qemu-img work at once in this trio run: the others wait for their turn."""

from __future__ import annotations

import os

import trio

__all__ = ["limiter", "turn"]

_LOOKS = 8  # for each processor: milliseconds each, and memory for each

_long: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("qmpkit image work")
_short: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("qmpkit image looks")


def limiter() -> trio.CapacityLimiter:
    """What bounds the work that reads or writes whole images, in this trio run.

    That is convert, compare, commit, rebase, check, measure, extents, bench, and create
    with preallocation.  As many run at once as this process has processors;
    `images.limiter().total_tokens = 1` lets them run one after the other.  Who waits can
    be cancelled, and a limit on time counts from the start of qemu-img.

    Looks and changes of metadata alone (`info`, an overlay, a snapshot) do not wait for
    those: they have a bound of their own, eight for each processor.
    """
    return _of(_long, 1)


def turn(*, long: bool) -> trio.CapacityLimiter:
    """What one qemu-img has to hold while it runs."""
    return limiter() if long else _of(_short, _LOOKS)


def _of(variable: trio.lowlevel.RunVar[trio.CapacityLimiter], each: int) -> trio.CapacityLimiter:
    try:
        return variable.get()
    except LookupError:
        made = trio.CapacityLimiter(each * len(os.sched_getaffinity(0)))
        variable.set(made)
        return made
