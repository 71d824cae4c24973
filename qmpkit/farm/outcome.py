"""What became of each machine of a farm that was brought up or taken down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import attrs

__all__ = ["Did", "Outcome", "Progress", "Result", "Tell"]

Did = Literal[
    "added",
    "started",
    "changed",
    "mended",
    "restarted",
    "unchanged",
    "restart-needed",
    "removed",
    "failed",
    "blocked",
]


@attrs.frozen
class Progress:
    """One step done: `machine` is now `what`; `done` of `total` machines are through."""

    machine: str
    what: str
    done: int
    total: int


Tell = Callable[[Progress], object]
"""Called with each step; it must not block."""


@attrs.frozen
class Result:
    """What was done with one machine, and why or with what success."""

    name: str
    did: Did
    why: str = ""

    @property
    def went_well(self) -> bool:
        """Whether it is as it was asked to be."""
        return self.did not in ("failed", "blocked")


@attrs.frozen
class Outcome:
    """The machines, in the order in which they were gone through."""

    machines: Mapping[str, Result] = attrs.field(factory=dict)

    @property
    def went_well(self) -> bool:
        """Whether no machine has failed; one that needs a restart has not."""
        return all(result.went_well for result in self.machines.values())
