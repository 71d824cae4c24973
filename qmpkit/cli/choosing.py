"""Which machines the words of a command mean.  Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from qmpkit.cli.exits import Refusal
from qmpkit.spec.suggest import among

__all__ = ["matching", "meant", "only_one"]


def meant(word: str, known: Sequence[str]) -> list[str]:
    """The machines that one word means: by its name one alone, even `web[1]`, else a pattern's."""
    if word in known:
        return [word]
    return [name for name in known if fnmatch.fnmatchcase(name, word)]


def matching(words: Iterable[str], known: Sequence[str], farm: str) -> list[str]:
    """The machines that names and patterns ("web*") mean, in the order of *known* for each.

    Raises Refusal for a word that means none.
    """
    found: dict[str, None] = {}
    for word in words:
        if not (matches := meant(word, known)):
            hint = among(word, known)
            raise Refusal(f"no machine of farm {farm!r} is called {word!r} ({hint})")
        found |= dict.fromkeys(matches)
    return list(found)


def only_one(word: str, known: Sequence[str], farm: str) -> str:
    """The one machine that *word* means; Refusal when it is none or several."""
    names = matching([word], known, farm)
    if len(names) > 1:
        raise Refusal(f"{word!r} means several machines: {', '.join(names)}")
    return names[0]
