"""Sizes as people write them: "1GiB" to bytes and back.

Units are powers of 1024. "GB" is refused instead of guessed: half of the world
reads it as 10**9, and QEMU's own "G" is 2**30.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NewType

from qmpkit.errors import Fault, SpecInvalid

__all__ = ["GIB", "KIB", "MIB", "Size", "format_size", "parse_size", "to_bytes"]

Size = NewType("Size", int)
"""A number of bytes that is written with a unit in dicts and TOML."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_UNITS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40, "PiB": 50}
_SHORT = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(value: str | int) -> Size:
    """Bytes of `"1.5GiB"`, `"512M"` (QEMU's short units, 1024 based) or a number of bytes.

    Raises `ValueError` whose text says what is wrong and how to write it.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        message = f'a size is written "512MiB" or as a number of bytes, not {value!r}'
        raise ValueError(message)  # noqa: TRY004 - the one error callers turn into a fault
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"a size cannot be negative, this is {value}")
        return Size(value)
    return _read(value)


@lru_cache  # a machine that is started is read and written several times
def _read(value: str) -> Size:
    found = _FORM.fullmatch(value)
    if found is None:
        raise ValueError(f'{value!r} is not a size; write for example "512MiB" or "10GiB"')
    exact = Fraction(found[1]) * (1 << _shift(value, found[2]))
    if exact.denominator != 1:
        raise ValueError(f"{value!r} is not a whole number of bytes")
    return Size(int(exact))


def _shift(value: str, unit: str) -> int:
    lower = unit.lower()
    if lower in _SHORT:
        return _SHORT[lower]
    for name, shift in _UNITS.items():
        if lower == name.lower():
            return shift
    if lower.endswith("b") and lower[:-1] in _SHORT:
        binary = f"{lower[0].upper()}iB"
        raise ValueError(f"{value!r} is ambiguous; qmpkit counts in 1024s: write {binary}")
    raise ValueError(f"{value!r} has an unknown unit {unit!r}; use KiB, MiB, GiB or TiB")


def format_size(size: int) -> str:
    """The shortest exact spelling: 1 GiB is "1GiB", 1.5 GiB is "1536MiB"."""
    for name, shift in reversed(_UNITS.items()):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{name}"
    return f"{size}B"


def to_bytes(value: str | int, path: str = "") -> Size:
    """`parse_size` for constructors: `SpecInvalid` that names *path* instead of `ValueError`."""
    try:
        return parse_size(value)
    except ValueError as error:
        raise SpecInvalid([Fault(path, str(error))]) from None
