"""What comes from outside is looked at before it is in the store: it must be an image, whole in
itself.

An image may name other files, as its base or for its content, and whoever opens it opens
those: any file of this host, or a server.  Only formats of which all such names are known
are taken, and of those only images that have none.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import trio

from qmpkit.errors import ImageFailed, ImageRefused, SpecInvalid
from qmpkit.host.headers import Header, read_header
from qmpkit.images.checking import check
from qmpkit.images.details import ImageInfo
from qmpkit.images.look import look_at
from qmpkit.images.store.index import Format
from qmpkit.images.tool import INFO_LIMITS

__all__ = ["FORMATS", "vetted"]

FORMATS: tuple[Format, ...] = get_args(Format)
_SECTOR = 512


async def vetted(source: str, draft: Path, format: str | None) -> ImageInfo:
    """What the image at *draft* is, when others may be built on it; *format* None: by its header.

    First its header is read, then qemu-img, with limits, is told its format, and checks the
    metadata of a qcow2.
    `ImageRefused` when it is not to be taken; `BinaryMissing` without qemu-img.
    """
    header, size = await trio.to_thread.run_sync(_glance, draft)
    found = header.format or "raw"
    if problem := _problem(header, found, format, size):
        raise ImageRefused(source, *problem)
    try:
        info = (await look_at(draft, format=found)).info
    except SpecInvalid as error:
        raise ImageRefused(source, "; ".join(map(str, error.faults))) from error
    except ImageFailed as error:
        raise ImageRefused(source, f"it is damaged: {error.stderr.strip()}") from error
    if info.backing is not None or info.data_file is not None or _outside(info):
        raise ImageRefused(source, *_NAMES_OTHERS)
    if info.corrupt:
        raise ImageRefused(source, "it is marked as corrupt")
    if info.format == "qcow2":
        await _sound(source, draft)
    return info


async def _sound(source: str, draft: Path) -> None:
    """Also of one that was cut off the first bytes make a good impression."""
    try:
        report = await check(draft, "qcow2", limits=INFO_LIMITS)
    except ImageFailed as error:
        raise ImageRefused(source, f"it is damaged: {error.stderr.strip()}") from error
    if not report.ok:
        why = f"it is damaged: {report.corruptions} corruptions and {report.errors} errors"
        raise ImageRefused(source, why, "pull it again")


_NAMES_OTHERS = (
    "it names another file, as its base or for its content",
    "if you trust it, make a copy without: qmpkit image convert",
)


def _glance(draft: Path) -> tuple[Header, int]:
    return read_header(draft), draft.stat().st_size


def _problem(header: Header, found: str, stated: str | None, size: int) -> tuple[str, str] | None:
    """Why it is not even opened, and what helps."""
    if header.empty:
        return "it is empty", ""
    if stated is not None and found != stated:
        return f"it is {found}, not {stated} as stated", ""
    if header.backing or header.data_file:
        named = header.backing or header.data_file
        what = "base" if header.backing else "data file"
        return f"it has a {what}, {named!r}", _NAMES_OTHERS[1]
    if found not in FORMATS:
        return (
            f"it is a {found} file, and the store takes qcow2 and raw images",
            "unpack it, or make a qcow2 of it with qmpkit image convert, if you trust it",
        )
    if found == "raw" and size % _SECTOR:
        return f"with {size} bytes it is no disk: the server may have sent a page instead", ""
    return None


def _outside(info: ImageInfo) -> bool:
    data = info.raw.get("format-specific", {}).get("data", {})
    return bool(data.get("data-file") or info.raw.get("full-backing-filename"))
