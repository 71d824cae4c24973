"""Which fields of a spec's table are paths, and which may hold `${variables}`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["EXPANDED", "PATHS", "map_fields", "texts_of"]

Pattern = tuple[str, ...]

PATHS: tuple[Pattern, ...] = (
    ("firmware",),
    ("firmware", "code"),
    ("firmware", "template"),
    ("firmware", "vars"),
    ("kernel", "image"),
    ("kernel", "initrd"),
    ("memory", "mem_path"),
    ("image_folders", "*"),
    ("resume_from",),
    ("disks", "*", "file"),
    ("disks", "*", "make", "file"),
    ("devices", "*", "file"),
    ("devices", "*", "path"),
    ("devices", "*", "socket"),
    ("disks", "*", "luks"),
    ("disks", "*", "luks", "key_file"),
    ("disks", "*", "luks", "bases", "*", "file"),
    ("disks", "*", "luks", "bases", "*", "key_file"),
)
"""Relative ones count from the file they are written in. `*` is every item of a list."""

EXPANDED: tuple[Pattern, ...] = (*PATHS, ("qemu",))
"""Besides `kernel.append`, which is expanded word by word."""


def map_fields(
    data: Any, patterns: tuple[Pattern, ...], change: Callable[[str, str], str]
) -> dict[str, Any]:
    """A copy of `data` with `change(where, text)` in place of every text a pattern names.

    What has not the expected form is left for the conversion to complain about.
    """
    for pattern in patterns:
        data = _mapped(data, pattern, "", change)
    result: dict[str, Any] = data
    return result


def texts_of(value: Any, patterns: tuple[Pattern, ...]) -> Iterator[str]:
    """Every text of a spec that a pattern names; what `map_fields` would find in its table."""
    for pattern in patterns:
        yield from _texts(value, pattern)


def _texts(value: Any, pattern: Pattern) -> Iterator[str]:
    if not pattern:
        if isinstance(value, str):
            yield value
    elif pattern[0] == "*" and isinstance(value, tuple):
        for item in value:
            yield from _texts(item, pattern[1:])
    elif (inner := getattr(value, pattern[0], None)) is not None:
        yield from _texts(inner, pattern[1:])


def _mapped(value: Any, pattern: Pattern, where: str, change: Callable[[str, str], str]) -> Any:
    if not pattern:
        return change(where, value) if isinstance(value, str) else value
    step, rest = pattern[0], pattern[1:]
    if step == "*" and isinstance(value, list):
        return [_mapped(item, rest, f"{where}[{n}]", change) for n, item in enumerate(value)]
    if isinstance(value, dict) and step in value:
        inner = _mapped(value[step], rest, f"{where}.{step}" if where else step, change)
        return {**value, step: inner}
    return value
