"""`qmpkit image snapshot …` and `qmpkit image bitmap …`: what an image keeps in itself."""

from __future__ import annotations

from pathlib import Path

import attrs

from qmpkit import images
from qmpkit.cli.confirm import confirmed
from qmpkit.cli.exits import Exit
from qmpkit.cli.image import changing, usable
from qmpkit.cli.image_view import BITMAP_HEADINGS, SNAPSHOT_HEADINGS, bitmap_row, snapshot_row
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.tables import print_line, print_table
from qmpkit.cli.talk import print_json, talk
from qmpkit.images.bitmaps import BitmapChange

__all__ = [
    "add_bitmap",
    "apply_snapshot",
    "change_bitmap",
    "create_snapshot",
    "delete_snapshot",
    "list_bitmaps",
    "list_snapshots",
    "merge_bitmap",
]

_DONE: dict[BitmapChange, str] = {
    "remove": "removed",
    "clear": "cleared: nothing is noted as written",
    "enable": "enabled: it notes what is written from now on",
    "disable": "disabled: it notes no more",
}


async def list_snapshots(file: Path, format: str | None, *, as_json: bool) -> None:
    """Print the snapshots in the image."""
    async with interruptible():
        image = await usable(file, format)
    if as_json:
        print_json([attrs.asdict(snapshot) for snapshot in image.snapshots])
    elif image.snapshots:
        print_table(SNAPSHOT_HEADINGS, map(snapshot_row, image.snapshots), prose=False)
    else:
        print_line(f"{file} has no snapshots")


async def create_snapshot(
    file: Path, name: str, format: str | None, secret_file: Path | None
) -> None:
    """Keep the present content."""
    async with changing(file, format, secret_file) as (image, secret):
        made = await images.create_snapshot(file, name, image.format, secret=secret)
    talk.say(f"{file}: snapshot {made.name!r} is made (id {made.id})")


async def apply_snapshot(
    file: Path, snapshot: str, format: str | None, secret_file: Path | None, *, yes: bool
) -> int:
    """Go back to a snapshot, once that is confirmed."""
    lost = f"what has been written to {file} since, and is in no snapshot"
    if not yes and not confirmed(f"Go back to snapshot {snapshot!r}", [lost]):
        return Exit.FAILED
    async with changing(file, format, secret_file) as (image, secret):
        await images.apply_snapshot(file, snapshot, image.format, secret=secret)
    talk.say(f"{file}: is what it was at snapshot {snapshot!r}, which stays")
    return Exit.OK


async def delete_snapshot(
    file: Path, snapshot: str, format: str | None, secret_file: Path | None
) -> None:
    """Remove a snapshot."""
    async with changing(file, format, secret_file) as (image, secret):
        await images.delete_snapshot(file, snapshot, image.format, secret=secret)
    talk.say(f"{file}: snapshot {snapshot!r} is deleted; the present content stays")


async def list_bitmaps(file: Path, format: str | None, *, as_json: bool) -> None:
    """Print the bitmaps in the image."""
    async with interruptible():
        image = await usable(file, format)
    if as_json:
        print_json([attrs.asdict(bitmap) for bitmap in image.bitmaps])
    elif image.bitmaps:
        print_table(BITMAP_HEADINGS, map(bitmap_row, image.bitmaps), prose=False)
    else:
        print_line(f"{file} has no bitmaps")


async def add_bitmap(
    file: Path,
    name: str,
    format: str | None,
    granularity: str,
    secret_file: Path | None,
    *,
    disabled: bool,
) -> None:
    """Add an empty bitmap."""
    async with changing(file, format, secret_file) as (image, secret):
        made = await images.add_bitmap(
            file,
            name,
            image.format,
            granularity=granularity,
            recording=not disabled,
            secret=secret,
        )
    talk.say(f"{file}: bitmap {made.name!r} is added, a bit for {made.granularity} bytes")


async def change_bitmap(
    file: Path, name: str, change: BitmapChange, format: str | None, secret_file: Path | None
) -> None:
    """Remove, clear, enable or disable a bitmap."""
    async with changing(file, format, secret_file) as (image, secret):
        await images.change_bitmap(file, name, change, image.format, secret=secret)
    talk.say(f"{file}: bitmap {name!r} is {_DONE[change]}")


async def merge_bitmap(
    file: Path, name: str, source: str, format: str | None, secret_file: Path | None
) -> None:
    """Note in one bitmap what another notes, too."""
    async with changing(file, format, secret_file) as (image, secret):
        await images.merge_bitmap(file, name, source, image.format, secret=secret)
    talk.say(f"{file}: bitmap {name!r} notes all that {source!r} does, too")
