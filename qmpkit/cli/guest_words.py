"""Words that are meant for a guest: its agent is told in JSON, which has texts alone."""

from __future__ import annotations

from collections.abc import Iterable

from qmpkit.cli.exits import Refusal
from qmpkit.spec.options import text_problem

__all__ = ["refuse_no_texts"]


def refuse_no_texts(words: Iterable[str]) -> None:
    """Raise Refusal for a word whose bytes are no text: they cannot be said to a guest."""
    for word in words:
        if problem := text_problem(word):
            raise Refusal(f"{word!r} cannot be told to a guest: {problem}")
