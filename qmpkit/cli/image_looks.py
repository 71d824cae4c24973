"""`qmpkit image map`, `measure`, `bench`: what an image is like from below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from qmpkit import images
from qmpkit.cli.confirm import confirmed
from qmpkit.cli.exits import Exit
from qmpkit.cli.image import usable
from qmpkit.cli.image_secret import read_secret
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.sizes import exact_size, human_size
from qmpkit.cli.tables import print_line, print_table
from qmpkit.cli.talk import noted, print_json

__all__ = ["bench", "measure", "show_map"]


async def show_map(
    file: Path,
    format: str | None,
    start: str,
    length: str | None,
    secret_file: Path | None,
    allow: Sequence[Path] | None,
    *,
    as_json: bool,
) -> None:
    """Print where the content is."""
    async with interruptible(), noted(f"{file}: looking …"):
        secret = await read_secret(secret_file)
        image = await usable(file, format, allow=allow)
        found = await images.extents(
            file, image.format, start=start, length=length, secret=secret, allowed=allow
        )
    if as_json:
        print_json([attrs.asdict(extent) for extent in found])
        return
    rows = [
        (extent.start, extent.length, extent.depth, _kind(extent), _place(extent.offset))
        for extent in found
    ]
    print_table(("START", "BYTES", "LAYER", "WHAT", "IN ITS FILE AT"), rows, prose=False)


def _kind(extent: images.Extent) -> str:
    if extent.data:
        return "compressed" if extent.compressed else "data"
    return "zeros" if extent.present else "nothing"


def _place(offset: int | None) -> str:
    return "" if offset is None else str(offset)


async def measure(
    file: Path,
    format: str | None,
    target_format: str,
    secret_file: Path | None,
    allow: Sequence[Path] | None,
    *,
    as_json: bool,
) -> None:
    """Print what a copy would take."""
    async with interruptible(), noted(f"{file}: measuring …"):
        secret = await read_secret(secret_file)
        image = await usable(file, format, allow=allow)
        found = await images.measure(
            file, image.format, target_format, secret=secret, allowed=allow
        )
    if as_json:
        print_json(attrs.asdict(found))
        return
    print_line(f"{exact_size(found.required)} as {target_format}")
    print_line(f"{exact_size(found.full)} once its guest has written all of it")
    if found.bitmaps:
        print_line(f"{exact_size(found.bitmaps)} more with its bitmaps")


async def bench(
    file: Path,
    format: str | None,
    requests: int,
    size: str,
    depth: int,
    secret_file: Path | None,
    *,
    overwrite: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Print how fast it is; to *overwrite* it is asked for."""
    what = f"Overwrite {file} to measure it"
    if overwrite and not yes and not confirmed(what, [f"all that {file} holds"]):
        return Exit.FAILED
    async with interruptible(), noted(f"{file}: measuring …"):
        secret = await read_secret(secret_file)
        image = await usable(file, format)
        found = await images.bench(
            file,
            image.format,
            requests=requests,
            size=size,
            depth=depth,
            overwrite=overwrite,
            secret=secret,
        )
    if as_json:
        print_json(attrs.asdict(found))
        return Exit.OK
    print_line(f"{found.requests} requests of {human_size(found.size)} in {found.seconds:g} s")
    if found.seconds:
        rate = human_size(round(found.bytes_per_second))
        print_line(f"{found.per_second:.0f} a second, {rate}/s")
    return Exit.OK
