"""Which machines a pool has and what may become of each: pure, so that every pair is tried."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

__all__ = ["TABLE", "Bounds", "Place", "Step", "moved", "to_start"]


class Place(enum.Enum):
    """Where a machine of a pool is."""

    STARTING = "starting"
    WARM = "warm"
    TAKEN = "taken"
    ENDING = "ending"
    GONE = "gone"


class Step(enum.Enum):
    """What happens to it."""

    READY = "is ready"
    TAKE = "is taken"
    PUT_BACK = "is put back untouched"
    DISCARD = "is not wanted any more, or is dead"
    END = "has ended"


TABLE: Mapping[tuple[Place, Step], Place] = {
    (Place.STARTING, Step.READY): Place.WARM,
    (Place.STARTING, Step.DISCARD): Place.ENDING,
    (Place.WARM, Step.TAKE): Place.TAKEN,
    (Place.WARM, Step.DISCARD): Place.ENDING,
    (Place.TAKEN, Step.PUT_BACK): Place.WARM,
    (Place.TAKEN, Step.DISCARD): Place.ENDING,
    (Place.ENDING, Step.DISCARD): Place.ENDING,  # its taker lets go of one that has died
    **{(place, Step.END): Place.GONE for place in Place if place is not Place.GONE},
}


def moved(place: Place, step: Step) -> Place:
    """Where a machine is after *step*; ValueError for what cannot happen.

    Above all, what is taken cannot be taken again, nor become warm once it was used.
    """
    try:
        return TABLE[place, step]
    except KeyError:
        raise ValueError(f"a machine that is {place.value} never {step.value}") from None


@attrs.frozen
class Bounds:
    """`warm`: how many are to be ready, `most`: may be there at all, `starts`: at one time."""

    warm: int
    most: int
    starts: int


def to_start(counts: Mapping[Place, int], waiting: int, bounds: Bounds) -> int:
    """How many machines to start now, while *waiting* takers wait for one."""
    starting = counts.get(Place.STARTING, 0)
    coming = starting + counts.get(Place.WARM, 0)
    there = sum(count for place, count in counts.items() if place is not Place.GONE)
    wanted = bounds.warm + waiting - coming
    return max(0, min(wanted, bounds.most - there, bounds.starts - starting))
