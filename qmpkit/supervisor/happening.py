"""One happening of a supervisor's machines."""

from __future__ import annotations

import attrs

__all__ = ["Happening"]


@attrs.frozen
class Happening:
    """One change of one machine.

    `sequence` orders the happenings of a supervisor; the next supervisor of the same
    kept machines goes on past a gap.  `time` is seconds since the epoch, `state` what the
    machine became ("queued", "starting", then the states of `qmpkit.machine.state.State`, or
    "failed" for a start that did not succeed, and those of `Kept`) or another word for what
    is no state ("healthy", "unhealthy", "differs", "refused", "watchdog", "not-durable",
    "share-lost", "ports-lost", "record-lost", "forgotten", "stranger"; of a move to another
    supervisor "migrated", "received", "stayed", "discarded", "asked"), `cause` why.
    """

    machine: str
    sequence: int
    time: float
    state: str
    cause: str
