"""Every pair of what a pool's machine is and what happens to it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.templates.stock import TABLE, Bounds, Place, Step, moved, to_start

COUNTS = st.dictionaries(st.sampled_from(list(Place)), st.integers(0, 9))
BOUNDS = st.builds(Bounds, st.integers(0, 9), st.integers(1, 30), st.integers(1, 4))


@pytest.mark.parametrize(("place", "step"), list(product(Place, Step)))
def test_every_pair_is_decided(place: Place, step: Step) -> None:
    if (place, step) in TABLE:
        assert moved(place, step) is TABLE[place, step]
        return
    with pytest.raises(ValueError, match=f"that is {place.value} never {step.value}"):
        moved(place, step)


def test_none_is_taken_twice_and_none_comes_back_from_its_end() -> None:
    assert [place for place in Place if (place, Step.TAKE) in TABLE] == [Place.WARM]
    after = {moved(Place.ENDING, step) for step in Step if (Place.ENDING, step) in TABLE}
    assert after == {Place.ENDING, Place.GONE}
    assert not [step for step in Step if (Place.GONE, step) in TABLE]


@pytest.mark.parametrize(
    ("counts", "waiting", "bounds", "starts"),
    [
        ({}, 0, Bounds(8, 100, 2), 2),
        ({Place.WARM: 8}, 0, Bounds(8, 100, 2), 0),
        ({Place.WARM: 7, Place.TAKEN: 1}, 0, Bounds(8, 100, 2), 1),
        ({Place.STARTING: 1}, 3, Bounds(0, 100, 4), 2),
        ({Place.TAKEN: 3}, 5, Bounds(1, 4, 9), 1),
        ({Place.TAKEN: 3, Place.ENDING: 1}, 5, Bounds(1, 4, 9), 0),
        ({Place.GONE: 50}, 0, Bounds(1, 4, 9), 1),
        ({Place.STARTING: 2}, 9, Bounds(8, 100, 2), 0),
    ],
)
def test_how_many_are_started(
    counts: dict[Place, int], waiting: int, bounds: Bounds, starts: int
) -> None:
    assert to_start(counts, waiting, bounds) == starts


@given(COUNTS, st.integers(0, 9), BOUNDS)
def test_no_bound_is_passed_and_nobody_waits_in_vain(
    counts: dict[Place, int], waiting: int, bounds: Bounds
) -> None:
    started = to_start(counts, waiting, bounds)
    there = sum(count for place, count in counts.items() if place is not Place.GONE)
    assert started == 0 or there + started <= bounds.most
    assert started == 0 or counts.get(Place.STARTING, 0) + started <= bounds.starts
    if waiting and there == 0:
        assert started > 0
