"""Sizes for people's eyes: short, and to the byte beside it."""

from __future__ import annotations

__all__ = ["exact_size", "human_size"]

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def human_size(size: int) -> str:
    """Three digits and a unit: "1.5 GiB", "196 KiB", "512 B"."""
    value, unit = float(size), "B"
    for larger in _UNITS:
        if value < 1000:
            break
        value, unit = value / 1024, larger
    digits = 0 if unit == "B" or value >= 100 or value == int(value) else 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def exact_size(size: int) -> str:
    """`human_size`, and the bytes: "1.5 GiB (1610612736 bytes)"."""
    return human_size(size) if size < 1000 else f"{human_size(size)} ({size} bytes)"
