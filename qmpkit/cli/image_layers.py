"""`qmpkit image rebase`, `commit`, `compare`: images and what is below them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from qmpkit import images
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.image import changing, format_line, usable
from qmpkit.cli.image_secret import read_secret
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.shown import shown_progress
from qmpkit.cli.sizes import exact_size
from qmpkit.cli.tables import print_line
from qmpkit.cli.talk import print_json, talk

__all__ = ["commit", "compare", "rebase"]


async def rebase(
    file: Path,
    base: Path | None,
    format: str | None,
    base_format: str | None,
    secret_file: Path | None,
    allow: Sequence[Path] | None,
    *,
    no_base: bool,
    unsafe: bool,
) -> None:
    """Put the overlay on another base and say so."""
    if (base is None) is not no_base:
        raise Refusal("say on which BASE to put it, or --no-base")
    async with interruptible() as work:
        secret = await read_secret(secret_file)
        top = await usable(file, format, allow=allow)
        below = None if base is None else await usable(base, base_format, "--base-format", allow)
        if below is not None:
            talk.note(f"{base}: {format_line(below, base_format)}")
        async with shown_progress(f"{file.name} → {base.name if base else 'no base'}") as progress:
            await images.rebase(
                file,
                top.format,
                base,
                below.format if below else None,
                unsafe=unsafe,
                secret=secret,
                allowed=allow,
                progress=progress,
            )
            work.done = True
    where = f"is on {base}" if base else "stands alone"
    how = "its name alone was changed" if unsafe else "its content is what it was"
    talk.say(f"{file}: {where}; {how}")


async def commit(
    file: Path,
    format: str | None,
    secret_file: Path | None,
    allow: Sequence[Path] | None,
    look_in: Sequence[Path],
    *,
    shared: bool,
    keep: bool,
) -> None:
    """Write the overlay's content into its base and say so."""
    async with (
        changing(file, format, secret_file, allow) as (top, secret),
        shown_progress(f"{file.name} → its base") as progress,
    ):
        base = await images.commit(
            file,
            top.format,
            shared=shared,
            keep=keep,
            look_in=look_in,
            secret=secret,
            allowed=allow,
            progress=progress,
        )
    talk.say(f"{base}: has what {file} held, {exact_size(top.virtual_size)}")
    talk.note(f"{file}: {'left full; remove it' if keep else 'emptied, and ready for more'}")


async def compare(
    one: Path,
    other: Path,
    format: str | None,
    other_format: str | None,
    secret_file: Path | None,
    allow: Sequence[Path] | None,
    *,
    as_json: bool,
) -> int:
    """Say whether both show a guest the same; the exit status tells, too."""
    async with interruptible() as work:
        secret = await read_secret(secret_file)
        left = await usable(one, format, allow=allow)
        right = await usable(other, other_format, "--other-format", allow)
        async with shown_progress(f"{one.name}, {other.name}") as progress:
            found = await images.compare(
                one,
                left.format,
                other,
                right.format,
                secret=secret,
                allowed=allow,
                progress=progress,
            )
            work.done = True
    if as_json:
        print_json(attrs.asdict(found))
    elif found.difference is not None:
        print_line(f"different: first in the sector at byte {found.difference}")
    else:
        length = "" if found.same_size else "; the longer one ends in zeros"
        print_line(f"identical{length}")
    return Exit.OK if found.identical else Exit.FAILED
