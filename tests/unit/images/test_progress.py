"""Progress: the latest fraction, for any number of onlookers, none of whom holds up the work."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from qmpkit.images.progress import Progress, percentages

PRINTED = (
    b"".join(b"    (%d.%02d/100%%)\r" % (n, n) for n in range(0, 100, 3)) + b"    (100.00/100%)\r\n"
)
LAST = 0.9999


@given(st.lists(st.integers(1, len(PRINTED) - 1)))
def test_it_is_read_however_it_is_cut(cuts: list[int]) -> None:
    progress = Progress()
    told = percentages(progress)
    places = [0, *sorted(cuts), len(PRINTED)]
    seen = [0.0]
    for start, end in pairwise(places):
        told(PRINTED[start:end])
        seen.append(progress.fraction)
    assert seen == sorted(seen)
    # A piece that holds the 100 % as well hides what came before it.
    assert 0.0 <= seen[-1] <= LAST
    assert len(told._rest) <= 64


def test_in_one_piece_and_byte_by_byte() -> None:
    whole, single = Progress(), Progress()
    percentages(whole)(PRINTED.partition(b"    (100")[0])
    told = percentages(single)
    for byte in PRINTED:
        told(bytes([byte]))
    assert whole.fraction == single.fraction == LAST


def test_a_hundred_per_cent_is_not_the_end() -> None:
    progress = Progress()
    percentages(progress)(b"    (99.50/100%)\r    (100.00/100%)\r\n")
    assert progress.fraction < 1.0


@pytest.mark.parametrize("chunk", [b"", b"\r", b"x" * 10_000, b"(1e9/100%)\r", b"(-1.00/100%)\r"])
def test_what_is_no_percentage(chunk: bytes) -> None:
    progress = Progress()
    percentages(progress)(chunk)
    assert progress.fraction == 0.0


async def test_a_slow_onlooker_skips_and_a_late_one_sees_the_end() -> None:
    progress = Progress()
    looker = progress.__aiter__()
    assert await looker.__anext__() == 0.0
    for fraction in (0.1, 0.5, 0.4, 0.7):
        progress._set(fraction)
    assert await looker.__anext__() == 0.7
    progress._set(1.0)
    assert [fraction async for fraction in looker] == [1.0]
    assert [fraction async for fraction in progress] == [1.0]


async def test_every_onlooker_is_told() -> None:
    progress = Progress()
    seen: list[list[float]] = [[], []]

    async def look(into: list[float]) -> None:
        async for fraction in progress:
            into.append(fraction)

    async with trio.open_nursery() as nursery:
        for into in seen:
            nursery.start_soon(look, into)
        for fraction in (0.25, 0.5, 1.0):
            await wait_all_tasks_blocked()
            progress._set(fraction)
    assert seen == [[0.0, 0.25, 0.5, 1.0]] * 2
