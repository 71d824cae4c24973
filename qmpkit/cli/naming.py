"""The names that complete in the shell; they come at once or not at all."""

from __future__ import annotations

import os
import tomllib

from qmpkit.cli.exits import Refusal
from qmpkit.cli.which_farm import which_farm
from qmpkit.process.durable import DRAFT
from qmpkit.process.entries import entries_in
from qmpkit.process.roots import JOURNAL, images_root, state_root
from qmpkit.spec.profile import CATALOGUE, profiles_dir

__all__ = ["catalogue_names", "image_names", "machine_names"]


def machine_names(farm: str | None = None) -> list[str]:
    """The machines that are on record of the farm that is meant; nobody is asked."""
    try:
        return sorted(entries_in(state_root() / which_farm(farm) / JOURNAL))
    except (Refusal, OSError):
        return []


def image_names() -> list[str]:
    """What the images in the store are called."""
    try:
        found = [entry.name for entry in os.scandir(images_root() / "names")]
    except OSError:
        return []
    return sorted(name for name in found if not name.endswith(DRAFT))


def catalogue_names() -> list[str]:
    """The images that can be pulled by a name."""
    text = (profiles_dir() / f"{CATALOGUE}.toml").read_text(encoding="utf-8")
    return list(tomllib.loads(text)["images"])
