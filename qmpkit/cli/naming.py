"""The names that complete in the shell; they come at once or not at all."""

from __future__ import annotations

import os

from qmpkit.cli.exits import Refusal
from qmpkit.cli.which_farm import which_farm
from qmpkit.process.roots import state_root

__all__ = ["machine_names"]


def machine_names(farm: str | None = None) -> list[str]:
    """The machines that are on record of the farm that is meant; nobody is asked."""
    try:
        folder = state_root() / which_farm(farm) / "machines"
        found = (entry.name for entry in os.scandir(folder))
        return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))
    except (Refusal, OSError):
        return []
