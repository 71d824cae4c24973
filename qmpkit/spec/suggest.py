"""What the author of a misspelt word may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from qmpkit.errors import Fault

__all__ = ["among", "suggestion", "unknown_key"]


def suggestion(word: object, known: Iterable[str]) -> str:
    """`did you mean 'disks'?`, or nothing when no known word is close."""
    if not isinstance(word, str):
        return ""
    plain = {name.replace("-", "_").lower(): name for name in known}
    asked = word.replace("-", "_").lower()
    near = difflib.get_close_matches(asked, plain, cutoff=0.6)
    # Of those that are close, two letters that changed places are the likeliest slip.
    near.sort(key=lambda name: sorted(name) != sorted(asked))
    return f"did you mean {plain[near[0]]!r}?" if near else ""


def unknown_key(path: str, key: str, known: Iterable[str]) -> Fault:
    """That nothing at *path* is called *key*, with the nearest that is, else all there are."""
    names = sorted(known)
    hint = suggestion(key, names) or f"known: {', '.join(names) or 'none'}"
    return Fault(path, "unknown key", hint)


def among(word: object, names: Iterable[str]) -> str:
    """The nearest of *names* to one that is none of them, else all there are."""
    there = tuple(names)
    return suggestion(word, there) or f"there are: {', '.join(there) or 'none'}"
