"""QEMU's two ways of spelling an option: JSON, and `key=value` with doubled commas.

The only place where a comma is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

__all__ = ["Json", "escape", "keyvals", "text_problem", "to_json"]

Json = Mapping[str, object]
"""The argument of `-device`, `device_add` and their like, before it is serialised."""


# In every plane the last two, and a block in the first: characters that are none.
_NEVER_CHARACTERS = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)


def text_problem(text: str) -> str:
    """Why QEMU takes no JSON that holds *text* (and on QMP loses its place); empty when it does.

    A file name whose bytes are not UTF-8 is a text with lone surrogates in Python.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return "QEMU takes no text that is not UTF-8"
    if found := _NEVER_CHARACTERS.search(text):
        return f"QEMU takes no U+{ord(found[0]):04X}, which Unicode keeps from being a character"
    return ""


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
    return _encode(value)


_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: each start asks a dozen times
