"""Lists of processors and nodes as the kernel writes them: "0-3,8"."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["list_problem", "numbers_of", "text_of"]

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def numbers_of(text: str) -> tuple[int, ...]:
    """The numbers of "0-3,8", sorted, each once; ValueError for what is no such list."""
    found: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        ends = _RANGE.fullmatch(part.strip())
        if ends is None or (ends[2] and int(ends[2]) < int(ends[1])):
            raise ValueError(f"{text!r} is not a list of numbers")
        found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return tuple(sorted(found))


def text_of(numbers: Iterable[int]) -> str:
    """The shortest way to write them: (0, 1, 2, 3, 8) is "0-3,8"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def list_problem(text: str) -> str:
    """What is wrong with a list that has to name at least one number; empty when it is fine."""
    try:
        return "" if numbers_of(text) else "the list is empty"
    except ValueError as error:
        return str(error)
