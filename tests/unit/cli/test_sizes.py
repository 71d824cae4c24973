"""Sizes as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.cli.sizes import exact_size, human_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1000, "0.98 KiB"),
        (1024, "1 KiB"),
        (196 << 10, "196 KiB"),
        (3 << 29, "1.5 GiB"),
        (10 << 30, "10 GiB"),
        (1_000_000_000, "954 MiB"),
        (12_345_678_901, "11.5 GiB"),
        (1 << 63, "8 EiB"),
    ],
)
def test_short(size: int, text: str) -> None:
    assert human_size(size) == text


def test_exact() -> None:
    assert exact_size(512) == "512 B"
    assert exact_size(3 << 29) == "1.5 GiB (1610612736 bytes)"


@given(st.integers(0, 1 << 64))
def test_it_is_never_far_off(size: int) -> None:
    number, unit = human_size(size).split()
    assert len(number) <= 4
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)
    assert abs(float(number) * factor - size) <= 0.006 * size
