"""Sockets that no machine on record has."""

from __future__ import annotations

from pathlib import Path

from qmpkit.process.places import discard
from qmpkit.process.sockets import listened_at

__all__ = ["strangers"]


def strangers(runtime: Path, known: set[Path]) -> list[Path]:
    """Directories of sockets that nobody knows and somebody listens at.  Blocking."""
    alive = []
    for directory in runtime.iterdir():
        if directory.name[0] == "." or directory.is_symlink() or not directory.is_dir():
            continue  # what begins with a dot is not a machine's
        if directory in known:
            continue
        if listened_at(directory / "qmp"):
            alive.append(directory)
        else:
            discard(directory)
    return alive
