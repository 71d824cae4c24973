"""Images and check reports, for eyes and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs

from qmpkit.cli.sizes import exact_size, human_size
from qmpkit.cli.talk import stdout_console, talk
from qmpkit.images import CheckReport, ImageInfo, Snapshot

__all__ = ["image_to_dict", "print_chain", "print_report", "report_to_dict"]


def image_to_dict(image: ImageInfo) -> dict[str, Any]:
    """The image as `qmpkit image info --json` prints it; sizes in bytes."""
    table = attrs.asdict(image, value_serializer=_plain)
    del table["raw"]  # qemu-img's own words: `qemu-img info --output=json` prints them
    return {**table, "in_use": image.in_use}


def report_to_dict(report: CheckReport) -> dict[str, Any]:
    """The report as `qmpkit image check --json` prints it."""
    return {**attrs.asdict(report, value_serializer=_plain), "ok": report.ok}


def _plain(_: object, __: object, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def print_chain(images: Sequence[ImageInfo], format: str) -> None:
    """The image and its bases, the top first, and what else is to be known of each."""
    from rich.table import Table
    from rich.text import Text

    top = images[0]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("IMAGE", "FORMAT", "SIZE", "ON DISK"):
        table.add_column(heading, no_wrap=True)
    for depth, image in enumerate(images):
        name = str(image.path) if depth == 0 else f"{'  ' * (depth - 1)}└ {_seen_from(top, image)}"
        sizes = exact_size(image.virtual_size), exact_size(image.disk_size)
        table.add_row(Text(name), image.format, *sizes)
    console = stdout_console()
    console.print(table)
    for line in (format, *(line for image in images for line in _remarks(image, top))):
        console.print(Text(line), soft_wrap=True)
    for image in images:
        if image.snapshots:
            console.print(Text(f"\nSnapshots in {image.path.name}:"), soft_wrap=True)
            console.print(_snapshot_table(image.snapshots))


def _seen_from(top: ImageInfo, image: ImageInfo) -> str:
    beside = image.path.parent == top.path.parent
    return image.path.name if beside else str(image.path)


def _remarks(image: ImageInfo, top: ImageInfo) -> Iterator[str]:
    who = "" if image is top else f"{_seen_from(top, image)}: "
    if image.holders:
        yield f"{who}in use by {', '.join(map(str, image.holders))}"
    if image.corrupt:
        yield f"{who}marked as corrupt: qmpkit image check --repair all"
    elif image.dirty:
        yield f"{who}not closed in order when it was last used"
    if image.encrypted:
        yield f"{who}encrypted"
    if image.cluster_size is not None and image is top:
        yield f"clusters of {human_size(image.cluster_size)}"
    if image.data_file is not None:
        yield f"{who}its content is in {image.data_file}"
    if image.backing is not None and image.backing_path is None:
        yield f"{who}its base is {image.backing}, which is not looked into"
    elif image.backing is not None and image.backing_format is None:
        yield f"{who}it does not record the format of its base, so that QEMU would guess it"
    for bitmap in image.bitmaps:
        state = "broken" if bitmap.broken else "recording" if bitmap.recording else "idle"
        step = human_size(bitmap.granularity)
        yield f"{who}bitmap {bitmap.name!r}, a bit for {step}, {state}"


def _snapshot_table(snapshots: Sequence[Snapshot]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("ID", "NAME", "TAKEN", "MACHINE STATE"):
        table.add_column(heading, no_wrap=True)
    for snapshot in snapshots:
        taken = datetime.fromtimestamp(snapshot.taken).astimezone().isoformat(" ", "seconds")
        state = human_size(snapshot.vm_size) if snapshot.vm_size else "none, the disk alone"
        table.add_row(Text(snapshot.id), Text(snapshot.name), taken, state)
    return table


def print_report(report: CheckReport, format: str) -> None:
    """One sentence about the image, and what was mended."""
    problems = _counted(report.corruptions, "corruption"), _counted(report.errors, "error")
    found = [text for text in (*problems, _counted(report.leaks, "leaked cluster")) if text]
    mended = _counted(report.corruptions_fixed, "corruption")
    freed = _counted(report.leaks_fixed, "leaked cluster")
    done = " and ".join(text for text in (mended, freed) if text)
    verdict = "sound" if report.ok else "damaged"
    what = f"{report.path}: {verdict}{', ' if found else ''}{', '.join(found)}"
    stdout_console().print(what, soft_wrap=True, highlight=False, markup=False)
    talk.note(format)
    if done:
        talk.note(f"mended: {done}")
    if report.leaks:
        talk.note("leaked clusters only take space: --repair leaks frees them")
    if not report.ok:
        talk.note("copy the image first, then try --repair all")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
