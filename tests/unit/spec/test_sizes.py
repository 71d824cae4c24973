"""Sizes read as people write them and print exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.spec.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", 1 << 30),
        ("512MiB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("512mib", 512 << 20),
        ("512M", 512 << 20),
        ("1.5GiB", 1536 << 20),
        ("524296KiB", 524296 << 10),
        ("4096", 4096),
        ("4096B", 4096),
        ("0", 0),
        (4096, 4096),
        ("2TiB", 2 << 40),
    ],
)
def test_what_people_write_is_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", '\'\' is not a size; write for example "512MiB" or "10GiB"'),
        ("-1", '\'-1\' is not a size; write for example "512MiB" or "10GiB"'),
        (-1, "a size cannot be negative, this is -1"),
        ("1GB", "'1GB' is ambiguous; qmpkit counts in 1024s: write GiB"),
        ("10 kb", "'10 kb' is ambiguous; qmpkit counts in 1024s: write KiB"),
        ("1GX", "'1GX' has an unknown unit 'GX'; use KiB, MiB, GiB or TiB"),
        ("0.3B", "'0.3B' is not a whole number of bytes"),
        (True, 'a size is written "512MiB" or as a number of bytes, not True'),
        (None, 'a size is written "512MiB" or as a number of bytes, not None'),
        ("٣GiB", '\'٣GiB\' is not a size; write for example "512MiB" or "10GiB"'),
    ],
)
def test_what_is_no_size_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 30, "1GiB"), (1536 << 20, "1536MiB"), (1000, "1000B"), (0, "0B"), (1 << 50, "1PiB")],
)
def test_the_shortest_exact_spelling_is_printed(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 62))
def test_what_is_printed_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size
