"""What the author of a misspelt word may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["suggestion"]


def suggestion(word: object, known: Iterable[str]) -> str:
    """`did you mean 'disks'?`, or nothing when no known word is close."""
    if not isinstance(word, str):
        return ""
    plain = {name.replace("-", "_").lower(): name for name in known}
    near = difflib.get_close_matches(word.replace("-", "_").lower(), plain, n=1, cutoff=0.6)
    return f"did you mean {plain[near[0]]!r}?" if near else ""
