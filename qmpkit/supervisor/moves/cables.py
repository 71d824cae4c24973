"""What a machine that moves has of the networks of its farm."""

from __future__ import annotations

from collections.abc import Iterator

from qmpkit.errors import Fault
from qmpkit.supervisor.record import Record

__all__ = ["cable_faults"]


def cable_faults(record: Record, cure: str) -> Iterator[Fault]:
    """Which of its cables cannot follow it; *cure*: what is done instead."""
    if record.joined:
        message = "its cables in the networks of its farm cannot follow it"
        yield Fault("networks", message, cure)
