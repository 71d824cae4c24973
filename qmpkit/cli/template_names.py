"""Templates by name: in a place of their own, so that nobody has to remember paths."""

from __future__ import annotations

import os
from pathlib import Path

from qmpkit.cli.exits import Refusal
from qmpkit.process.roots import templates_root
from qmpkit.spec.names import machine_name_problem
from qmpkit.spec.suggest import among

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
    if problem := _path_problem(word) if "/" in word else _name_problem(word):
        what = f"{word!r} is no template's name: {problem}"
        raise Refusal(f"{what}. Cure: one like web, or a path: ./web")
    return Path(word).absolute() if "/" in word else templates_root() / word


def _name_problem(word: str) -> str:
    """It is a folder beside the others, and a line of a table, as a machine's name is."""
    found = machine_name_problem(word) if word else "it is empty"
    return found.replace(repr(word), "it", 1)


def _path_problem(word: str) -> str:
    name = Path(word).name
    if name in ("", ".."):
        return "it does not end with the name of a folder"
    return "" if name.isprintable() and "\0" not in word else "its folder's name cannot be printed"


def known_template(word: str) -> Path:
    """`template_path` of one that is there; Refusal that says what may have been meant."""
    path = template_path(word)
    if "/" not in word and not path.is_dir():
        names = template_names()
        hint = among(word, names)
        raise Refusal(f"no template is called {word!r} ({hint})")
    return path
