"""Images and check reports, for eyes and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs

from qmpkit.cli.sizes import exact_size, human_size
from qmpkit.cli.tables import print_line, print_table
from qmpkit.cli.talk import talk
from qmpkit.images import Bitmap, CheckReport, ImageInfo, Snapshot

__all__ = [
    "BITMAP_HEADINGS",
    "SNAPSHOT_HEADINGS",
    "bitmap_row",
    "image_to_dict",
    "print_chain",
    "print_report",
    "report_to_dict",
    "snapshot_row",
]

SNAPSHOT_HEADINGS = ("ID", "NAME", "TAKEN", "MACHINE STATE")
BITMAP_HEADINGS = ("NAME", "A BIT FOR", "STATE")


def image_to_dict(image: ImageInfo) -> dict[str, Any]:
    """The image as `qmpkit image info --json` prints it; sizes in bytes."""
    table = attrs.asdict(image, value_serializer=_plain)
    del table["raw"]  # qemu-img's own words: `qemu-img info --output=json` prints them
    return table


def report_to_dict(report: CheckReport) -> dict[str, Any]:
    """The report as `qmpkit image check --json` prints it."""
    return {**attrs.asdict(report, value_serializer=_plain), "ok": report.ok}


def _plain(_: object, __: object, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def print_chain(images: Sequence[ImageInfo], format: str) -> None:
    """The image and its bases, the top first, and what else is to be known of each."""
    top = images[0]
    rows = [_row(top, image, depth) for depth, image in enumerate(images)]
    print_table(("IMAGE", "FORMAT", "SIZE", "ON DISK"), rows, prose=False)
    for line in (format, *(line for image in images for line in _remarks(image, top))):
        print_line(line)
    for image in images:
        if image.snapshots:
            print_line("")
            print_line(f"Snapshots in {image.path.name}:")
            print_table(SNAPSHOT_HEADINGS, map(snapshot_row, image.snapshots), prose=False)


def _row(top: ImageInfo, image: ImageInfo, depth: int) -> tuple[str, ...]:
    name = str(image.path) if depth == 0 else f"{'  ' * (depth - 1)}└ {_seen_from(top, image)}"
    return name, image.format, exact_size(image.virtual_size), exact_size(image.disk_size)


def _seen_from(top: ImageInfo, image: ImageInfo) -> str:
    beside = image.path.parent == top.path.parent
    return image.path.name if beside else str(image.path)


def _remarks(image: ImageInfo, top: ImageInfo) -> Iterator[str]:
    who = "" if image is top else f"{_seen_from(top, image)}: "
    if image.in_use:
        holders = ", ".join(map(str, image.holders)) or "a process that this user may not see"
        yield f"{who}in use by {holders}"
    if image.corrupt:
        yield f"{who}marked as corrupt: qmpkit image check --repair all"
    elif image.dirty:
        yield f"{who}not closed in order when it was last used"
    if image.encrypted:
        yield f"{who}encrypted"
    if image.cluster_size is not None and image is top:
        yield f"clusters of {human_size(image.cluster_size)}"
    if image.data_file is not None:
        yield f"{who}its content is in {image.data_file}{_lost(image.data_file)}"
    if image.backing is not None and image.backing_path is None:
        yield f"{who}its base is {image.backing}, which is not looked into"
    elif image.backing is not None and image.backing_format is None:
        yield f"{who}it does not record the format of its base, so that QEMU would guess it"
    for bitmap in image.bitmaps:
        name, step, state = bitmap_row(bitmap)
        yield f"{who}bitmap {name!r}, a bit for {step}, {state}"


def _lost(data_file: Path) -> str:
    if data_file.is_absolute():
        return ""
    return ", wherever QEMU is started: qmpkit image amend --data-file records where it is"


def bitmap_row(bitmap: Bitmap) -> tuple[str, str, str]:
    """A bitmap in the columns of `BITMAP_HEADINGS`."""
    state = "broken" if bitmap.broken else "recording" if bitmap.recording else "idle"
    return bitmap.name, human_size(bitmap.granularity), state


def snapshot_row(snapshot: Snapshot) -> tuple[str, ...]:
    """A snapshot in the columns of `SNAPSHOT_HEADINGS`."""
    taken = datetime.fromtimestamp(snapshot.taken).astimezone().isoformat(" ", "seconds")
    state = human_size(snapshot.vm_size) if snapshot.vm_size else "none, the disk alone"
    return snapshot.id, snapshot.name, taken, state


def print_report(report: CheckReport, format: str) -> None:
    """One sentence about the image, and what was mended."""
    problems = _counted(report.corruptions, "corruption"), _counted(report.errors, "error")
    found = [text for text in (*problems, _counted(report.leaks, "leaked cluster")) if text]
    mended = _counted(report.corruptions_fixed, "corruption")
    freed = _counted(report.leaks_fixed, "leaked cluster")
    done = " and ".join(text for text in (mended, freed) if text)
    verdict = "sound" if report.ok else "damaged"
    what = f"{report.path}: {verdict}{', ' if found else ''}{', '.join(found)}"
    print_line(what)
    talk.note(format)
    if done:
        talk.note(f"mended: {done}")
    if report.leaks:
        talk.note("leaked clusters only take space: --repair leaks frees them")
    if not report.ok:
        talk.note("copy the image first, then try --repair all")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
