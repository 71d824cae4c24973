"""Numbers and lists as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from qmpkit.spec.sizes import GIB, KIB, MIB

__all__ = ["count_of_list", "listing", "plural", "size"]


def plural(number: int, word: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def size(number: int) -> str:
    """Bytes, rounded down to what the eye takes in: `23.5 GiB`, `512 MiB`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if number >= unit:
            tenths = number * 10 // unit
            whole = tenths >= 1000 or tenths % 10 == 0
            return f"{tenths // 10} {name}" if whole else f"{tenths / 10} {name}"
    return f"{number} B"


def count_of_list(text: str) -> int:
    """How many numbers the kernel's `0-3,8` names; 0 for what is no such list."""
    try:
        ranges = [part.split("-") for part in text.split(",") if part]
        return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)
    except ValueError:
        return 0


def listing(names: Sequence[str], most: int = 6) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
