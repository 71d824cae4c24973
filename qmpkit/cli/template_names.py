"""Templates by name: in a place of their own, so that nobody has to remember paths."""

from __future__ import annotations

import os
from pathlib import Path

from qmpkit.cli.exits import Refusal
from qmpkit.process.roots import templates_root
from qmpkit.spec.suggest import suggestion

__all__ = ["known_template", "template_names", "template_path"]


def template_names(_: object = None) -> list[str]:
    """Those that can be called by name; blocking."""
    try:
        with os.scandir(templates_root()) as found:
            return sorted(it.name for it in found if not it.name.startswith(".") and it.is_dir())
    except OSError:
        return []


def template_path(word: str) -> Path:
    """The folder that *word* means: a path when it has a slash, else a name."""
    if "\0" in word or ("/" not in word and (not word or word.startswith("."))):
        raise Refusal(f"{word!r} is no template's name. Cure: one like web, or a path: ./web")
    return Path(word).absolute() if "/" in word else templates_root() / word


def known_template(word: str) -> Path:
    """`template_path` of one that is there; Refusal that says what may have been meant."""
    path = template_path(word)
    if "/" not in word and not path.is_dir():
        names = template_names()
        hint = suggestion(word, names) or f"there are: {', '.join(names) or 'none'}"
        raise Refusal(f"no template is called {word!r} ({hint})")
    return path
