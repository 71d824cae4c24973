"""What the tests of backups share: a look into their folder."""

from __future__ import annotations

import json
from pathlib import Path

from qmpkit import BackupPoint, backups
from qmpkit.backups.repository import MANIFEST

__all__ = ["files_needed", "files_there", "make_first_older", "points_in"]

DAY = 86400


def files_there(folder: Path) -> set[str]:
    """All that is in the folder but for the manifest."""
    return {path.name for path in folder.iterdir()} - {MANIFEST}


def files_needed(points: tuple[BackupPoint, ...]) -> set[str]:
    """What should be there."""
    return {layer.file for point in points for layer in point.disks.values()}


async def points_in(folder: Path) -> tuple[BackupPoint, ...]:
    """The points, also of a folder that nothing has been put into."""
    return await backups.points(folder) if (folder / MANIFEST).exists() else ()


def make_first_older(folder: Path) -> None:
    """Put the first point three days into the past of the second."""
    told = json.loads((folder / MANIFEST).read_text())
    told["points"][0]["time"] = told["points"][1]["time"] - 3 * DAY
    (folder / MANIFEST).write_text(json.dumps(told))
