"""A disk as it was at a point, in an image of its own."""

from __future__ import annotations

from pathlib import Path

from qmpkit.backups.repository import repository
from qmpkit.backups.verifying import Told, flaws_of, refused
from qmpkit.images.conversion import converting
from qmpkit.images.drafts import StrPath
from qmpkit.spec.backups import BackupPoint, point_of

__all__ = ["restore"]


async def restore(
    folder: StrPath,
    disk: str,
    target: StrPath,
    *,
    point: int | None = None,
    format: str = "qcow2",
    verified: bool = True,
    progress: Told | None = None,
) -> Path:
    """Write what *disk* had at *point* (None: the newest) to the new image *target*.

    It needs nothing of the backups afterwards.  *target* appears when it is whole and safe
    on disk, and never takes the place of a file.  *verified*: the checksums of all that is
    read are compared before.  *progress* is told of that, then of the copying, from 0.0
    again.  The absolute path is given back.

    Raises SpecInvalid when there is no such point or disk, ImageFailed when a layer is
    not what it was or *target* cannot be written, ImageInUse while a backup runs there.
    """
    async with repository(folder, doing="restore from") as place:
        chosen = point_of(place.manifest, point, disk)
        layer = chosen.disks[disk]
        if verified:
            one = BackupPoint(number=chosen.number, time=chosen.time, disks={disk: layer})
            flaws = await flaws_of(place, [one], progress)
            if flaws:
                raise refused(place, flaws, "restore from")
        source = place.path(layer.file)
        copying = converting(
            source, target, source_format="qcow2", format=format, allowed=[place.folder]
        )
        async with copying as fractions:
            async for fraction in fractions:
                if progress is not None:
                    progress(fraction)
    return Path(target).absolute()  # noqa: ASYNC240  # one getcwd
