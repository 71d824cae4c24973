"""`qmpkit backup …` as the shell sees it: words, options, help.  The deeds are in `cli.backup`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

__all__ = ["ALL"]

Folder = Annotated[Path, Parameter(help="The folder of the backups.")]
OnePoint = Annotated[
    int | None, Parameter(name="--point", help="Its number, as `backup list` shows it.")
]

OneDisk = Annotated[
    str | None, Parameter(help="Which disk. Default: the only one that the point has.")
]


async def list(
    folder: Folder,
    /,
    *,
    json: Annotated[bool, Parameter(name="--json", help="JSON; sizes in bytes.")] = False,
) -> None:
    """Show the points in time that a folder of backups holds."""
    from qmpkit.cli.backup import show_points

    await show_points(folder, as_json=json)


async def verify(
    folder: Folder,
    /,
    *,
    point: OnePoint = None,
    against: Annotated[
        Path | None,
        Parameter(help="An image of a stopped machine, to be compared with the point's disk too."),
    ] = None,
    format: Annotated[
        Literal["qcow2", "raw"], Parameter(help="The format of that image. Default: qcow2.")
    ] = "qcow2",
    disk: OneDisk = None,
) -> int:
    """Read every layer, or those that one point needs, and compare its checksum.

    Exit status 0: all are what they were; 1: some are not, or the image shows something else.
    """
    from qmpkit.cli.backup import verify

    return await verify(folder, point, against, format, disk)


async def restore(
    folder: Folder,
    target: Annotated[Path, Parameter(help="Where to write the disk; nothing may be there.")],
    /,
    *,
    disk: OneDisk = None,
    point: OnePoint = None,
    format: Annotated[
        Literal["qcow2", "raw"], Parameter(help="The new image's format. Default: qcow2.")
    ] = "qcow2",
    no_verify: Annotated[bool, Parameter(help="Do not compare checksums before.")] = False,
) -> None:
    """Write a disk as it was at a point, the newest by default, to a new image.

    It needs nothing of the backups afterwards, and appears when it is whole.
    """
    from qmpkit.cli.backup import restore

    await restore(folder, target, disk, point, format, verified=not no_verify)


async def prune(
    folder: Folder,
    /,
    *,
    keep_last: Annotated[int, Parameter(help="Keep so many of the newest points.")] = 0,
    daily: Annotated[int, Parameter(help="… and one of each of so many days that have any.")] = 0,
    weekly: Annotated[int, Parameter(help="… and one of each of so many weeks that have any.")] = 0,
    dry_run: Annotated[bool, Parameter(help="Only show which would go.")] = False,
) -> None:
    """Remove the points that are not to be kept; the newest always is.

    What later points need of them is merged into those. Days and weeks are those of UTC.
    """
    from qmpkit.cli.backup import prune

    await prune(folder, keep_last, daily, weekly, dry_run=dry_run)


def run(
    name: Annotated[str, Parameter(help="The machine, one of a farm; it may be down.")],
    folder: Annotated[Path, Parameter(help="The folder of its backups; made if not there.")],
    /,
    *,
    mode: Annotated[
        Literal["auto", "full", "incremental"],
        Parameter(help="What is copied: what has changed where that is known (auto), or all."),
    ] = "auto",
    compress: Annotated[bool, Parameter(help="Compress what is copied.")] = False,
    speed: Annotated[
        str, Parameter(help="At most so much a second: 50MiB. Default: all it can.")
    ] = "0",
    freeze: Annotated[
        bool, Parameter(help="Have the guest flush its file systems (needs its agent).")
    ] = False,
    plain: Annotated[
        bool, Parameter(help="Of encrypted disks too: the layers have in clear what they hold.")
    ] = False,
    compare: Annotated[
        bool, Parameter(help="Read the disks a second time, as they were, and compare.")
    ] = False,
    farm: Annotated[str | None, Parameter(help="The farm. Default: the only one.")] = None,
) -> None:
    """Back up all disks of a machine while it runs, by its farm's daemon.

    It says which disks were copied whole, and why.
    """
    from qmpkit.cli.backup_run import run

    body = {"compress": compress, "freeze": freeze, "plain": plain, "compare": compare}
    run(name, folder, farm, {"mode": mode, **body}, speed)


ALL: tuple[Callable[..., Any], ...] = (run, list, verify, restore, prune)
