"""What to do when a kept machine has ended: the one place that a restart policy decides in.

Pure: `decide(record, end)` answers with `Again`, `Stay` or `CrashLoop`.
"""

from __future__ import annotations

import random

import attrs

from qmpkit.supervisor.record import End, Record

__all__ = ["Again", "CrashLoop", "Decision", "Stay", "decide"]


@attrs.frozen
class Again:
    """Start it again, *after* so many seconds."""

    after: float


@attrs.frozen
class Stay:
    """Leave it down."""


@attrs.frozen
class CrashLoop:
    """It ends again and again: leave it down until a person says what is to be."""

    restarts: int
    period: float


Decision = Again | Stay | CrashLoop


def decide(record: Record, end: End) -> Decision:
    """By the machine's `Restart`, its restarts so far, and how it has ended.

    An interruption, as by a reboot of the host, is not the machine's doing: it starts again,
    whatever its policy.
    """
    policy = record.restart
    if record.declared == "stopped":
        return Stay()
    if end.interrupted:
        return Again(0.0)
    if end.asked or policy.policy == "never":
        return Stay()
    if policy.policy == "on-failure" and not end.failure:
        return Stay()
    recent = sum(end.time - policy.period < when for when in record.restarts)
    if recent >= policy.intensity:
        return CrashLoop(recent, policy.period)
    steps = 0 if end.uptime >= policy.period else min(recent, 64)
    after = min(policy.max_delay, policy.delay * policy.factor**steps)
    # By the machine and the moment, so that the same end is always answered alike.
    spread = random.Random(f"{record.name} {end.time}").uniform(-1, 1)
    return Again(after * (1 + policy.jitter * spread))
