"""QEMU's two ways of spelling an option: JSON, and `key=value` with doubled commas.

The only place where a comma is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

__all__ = ["Json", "escape", "keyvals", "to_json"]

Json = Mapping[str, object]
"""The argument of `-device`, `device_add` and their like, before it is serialised."""


def escape(value: str) -> str:
    """`value` as one field of a comma-separated option."""
    return value.replace(",", ",,")


def keyvals(head: str, pairs: Iterable[tuple[str, str | int | bool | None]]) -> str:
    """`head,key=value,…`; None is left out, booleans are on and off.

    An empty `head` is left out too.
    """
    words = [escape(head)] if head else []
    for key, value in pairs:
        if value is None:
            continue
        if isinstance(value, bool):
            value = "on" if value else "off"
        words.append(f"{key}={escape(str(value))}")
    return ",".join(words)


def to_json(value: Json) -> str:
    """Compact JSON in the order of the keys. Only ASCII, so no locale can spoil it."""
    return json.dumps(value, separators=(",", ":"))
