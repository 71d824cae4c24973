"""Which farm a command is about."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qmpkit.cli.exits import Refusal
from qmpkit.process.entries import entries_in
from qmpkit.process.roots import DECLARED, JOURNAL, known_supervisors, state_root
from qmpkit.spec.names import machine_name_problem

__all__ = ["FARM_VARIABLE", "farm_of_file", "which_farm"]

FARM_VARIABLE = "QMPKIT_FARM"
_DEFAULT = "qmpkit"


def which_farm(given: str | None) -> str:
    """The farm that was named, by option or environment; else the only one that has machines.

    Raises Refusal when there are several.
    """
    if name := _named(given):
        return name
    known = known_supervisors()
    if len(known) > 1:  # what one that was taken down has left is none beside others
        known = [name for name in known if _has_machines(state_root() / name)] or known
    if len(known) > 1:
        raise Refusal(f"there are several farms: {', '.join(known)}. Cure: name one with --farm")
    return known[0] if known else _DEFAULT


def _has_machines(state: Path) -> bool:
    """Whether it keeps any, or is declared to; also when nobody can tell."""
    try:
        return (state / DECLARED).exists() or bool(entries_in(state / JOURNAL))
    except OSError:
        return True


def farm_of_file(given: str | None, file: Path) -> str:
    """The farm that a file is for: as it is named, else called as the file or its directory."""
    if name := _named(given):
        return name
    path = file.absolute()
    called = path.parent.name if path.name == "farm.toml" else path.stem
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", called, flags=re.ASCII).strip("-_")
    return plain[:64] if plain and not machine_name_problem(plain[:64]) else _DEFAULT


def _named(given: str | None) -> str | None:
    # An option that is there and empty is a script's unset variable, which meant another farm.
    name, where = (given, "--farm") if given is not None else _of_environment()
    if name is not None and (problem := machine_name_problem(name)):
        raise Refusal(f"{where} {name}: {problem.replace('a machine', 'a farm')}")
    return name


def _of_environment() -> tuple[str | None, str]:
    return os.environ.get(FARM_VARIABLE) or None, f"${FARM_VARIABLE}"
