"""`qmpkit backup …`: what each of its commands does, all of it without a daemon."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import trio

from qmpkit import backups
from qmpkit.backups import BackupPoint
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.places import check_place
from qmpkit.cli.progress import shown
from qmpkit.cli.sizes import human_size
from qmpkit.cli.tables import print_line, print_table
from qmpkit.cli.talk import print_json, talk
from qmpkit.spec.backups import point_to_dict, point_with

__all__ = ["prune", "restore", "show_points", "verify"]


async def show_points(folder: Path, *, as_json: bool) -> None:
    """Print the points, the oldest first."""
    async with interruptible():
        found = await backups.points(folder)
    if as_json:
        print_json([point_to_dict(point) for point in found])
        return
    print_table(("POINT", "TIME", "KIND", "SIZE", "DISKS", "REMARK"), _rows(found), prose=True)


def _rows(points: Sequence[BackupPoint]) -> list[tuple[str, ...]]:
    return [
        (
            str(point.number),
            _time(point),
            point.kind,
            human_size(sum(layer.length for layer in point.disks.values())),
            ", ".join(point.disks),
            "; ".join(filter(None, ("frozen" if point.frozen else "", point.why))),
        )
        for point in points
    ]


def _time(point: BackupPoint) -> str:
    return datetime.fromtimestamp(point.time).astimezone().isoformat(" ", "seconds")


async def verify(
    folder: Path, number: int | None, against: Path | None, format: str, disk: str | None
) -> int:
    """Compare checksums, and an image when there is one, and say what is not as it was."""
    async with interruptible():
        point = point_with(await backups.points(folder), number)  # there is one
        with shown(f"{folder}: reading") as told:
            flaws = await backups.verify(folder, point=number, progress=told)
        for flaw in flaws:
            print_line(str(flaw))
        if flaws:
            return Exit.FAILED
        which = "all points" if number is None else f"point {number}"
        talk.say(f"{folder}: {which} can be restored, every checksum is right")
        if against is None:
            return Exit.OK
        disk = disk or _only_disk(point)
        same = await backups.compare(folder, disk, against, format=format, point=point.number)
    verdict = "is" if same else "is NOT"
    print_line(f"{against} {verdict} what {disk} was at point {point.number}, {_time(point)}")
    return Exit.OK if same else Exit.FAILED


async def restore(
    folder: Path,
    target: Path,
    disk: str | None,
    number: int | None,
    format: str,
    *,
    verified: bool,
) -> None:
    """Write the disk to *target* and say of which point it is."""
    async with interruptible() as work:
        await trio.to_thread.run_sync(check_place, target)
        point = point_with(await backups.points(folder), number)
        disk = disk or _only_disk(point)
        with shown(f"{folder} → {target.name}") as told:
            await backups.restore(
                folder,
                disk,
                target,
                point=point.number,
                format=format,
                verified=verified,
                progress=told,
            )
        work.done = True
    talk.say(f"{target}: {format}, {disk} as it was at point {point.number}, {_time(point)}")


def _only_disk(point: BackupPoint) -> str:
    if len(point.disks) == 1:
        return next(iter(point.disks))
    listed = ", ".join(point.disks)
    raise Refusal(f"point {point.number} has {len(point.disks)} disks. Cure: --disk, of {listed}")


async def prune(folder: Path, keep_last: int, daily: int, weekly: int, *, dry_run: bool) -> None:
    """Remove points and say which."""
    async with interruptible():
        gone = await backups.prune(
            folder,
            keep_last=keep_last,
            daily=daily,
            weekly=weekly,
            dry_run=dry_run,
            step=talk.note,
        )
    for point in gone:
        done = "would go" if dry_run else "is gone"
        print_line(f"point {point.number}, {_time(point)}, {done}")
    if not gone:
        talk.say(f"{folder}: every point is kept")
