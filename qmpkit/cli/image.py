"""`qmpkit image …`: what each of its commands does."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import trio

from qmpkit import images
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.image_secret import read_secret
from qmpkit.cli.image_view import image_to_dict, print_chain, print_report, report_to_dict
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.places import check_cache, check_place, size_judged
from qmpkit.cli.progress import show_progress
from qmpkit.cli.safe import one_line, shell_word
from qmpkit.cli.sizes import exact_size, human_size
from qmpkit.cli.stored import stored
from qmpkit.cli.talk import noted, print_json, talk
from qmpkit.errors import QmpkitError, SpecInvalid
from qmpkit.images import ImageInfo
from qmpkit.images.look import image_fault, usable_format
from qmpkit.images.options import DEFAULTS
from qmpkit.spec.sizes import to_bytes

__all__ = [
    "build",
    "changing",
    "check",
    "convert",
    "create",
    "format_line",
    "overlay",
    "resize",
    "show_info",
    "usable",
]


async def create(
    file: Path,
    size: str,
    format: str,
    options: images.Options = DEFAULTS,
    secret_file: Path | None = None,
) -> None:
    """Make an empty image and say so."""
    length: int = to_bytes(size, "SIZE")
    async with interruptible() as work:
        secret = await read_secret(secret_file)
        await trio.to_thread.run_sync(check_place, file)
        async with noted(f"{file}: making it …"):
            with size_judged(length, format):
                await images.create(file, length, format, options=options, secret=secret)
        work.done = True
        with suppress(QmpkitError):  # it is made, whatever hinders a look at it
            # qemu-img makes whole sectors of it.
            made = await images.info(file, format=format)
            length = made.virtual_size
    talk.say(f"{file}: an empty {format} of {exact_size(length)} is made")


async def overlay(
    file: Path,
    base: Path,
    base_format: str | None,
    options: images.Options = DEFAULTS,
    secret_file: Path | None = None,
    allow: Sequence[Path] | None = None,
) -> None:
    """Make an overlay and say what is below it."""
    async with interruptible() as work:
        secret = await read_secret(secret_file)
        await trio.to_thread.run_sync(check_place, file)
        base = await stored(base)
        below = await usable(base, base_format, "--base-format", allow)
        await images.overlay(
            file, base, below.format, options=options, secret=secret, allowed=allow
        )
        work.done = True
    talk.say(f"{file}: an overlay of {exact_size(below.virtual_size)} is made")
    talk.note(f"{base}: {format_line(below, base_format)}; from now on it must not change")


async def show_info(file: Path, format: str | None, *, as_json: bool) -> None:
    """Print what the image and each of its bases is."""
    async with interruptible(), noted(f"{file}: looking …"):
        top = await _known(file, format)
        found = await images.chain(file, format=top.format)
    if as_json:
        print_json([image_to_dict(image) for image in found])
    else:
        print_chain(found, format_line(top, format))


async def check(
    file: Path,
    format: str | None,
    repair: Literal["leaks", "all"] | None,
    secret_file: Path | None = None,
    allow: Sequence[Path] | None = None,
    *,
    as_json: bool,
) -> int:
    """Check, or mend, the image's metadata; the exit status tells whether it is sound."""
    async with interruptible(), noted(f"{file}: checking …"):
        secret = await read_secret(secret_file)
        image = await usable(file, format, allow=allow)
        if image.format == "raw":
            raise Refusal(f"{file} is raw, which has no bookkeeping that could be checked")
        report = await images.check(file, image.format, repair=repair, secret=secret, allowed=allow)
    if as_json:
        print_json(report_to_dict(report))
    else:
        print_report(report, format_line(image, format))
    return Exit.OK if report.ok else Exit.FAILED


async def resize(
    file: Path,
    size: str,
    format: str | None,
    secret_file: Path | None = None,
    allow: Sequence[Path] | None = None,
    *,
    shrink: bool,
) -> None:
    """Change the image's size and say from what to what."""
    async with interruptible():
        secret = await read_secret(secret_file)
        before = await usable(file, format, allow=allow)
        wanted = _new_size(size, before.virtual_size)
        if wanted < before.virtual_size and not shrink:
            lost = human_size(before.virtual_size - wanted)
            raise Refusal(
                f"{file} has {exact_size(before.virtual_size)}: what lies in the last {lost} would "
                "be lost. Cure: --shrink, once the guest's file systems and partitions are smaller"
            )
        with size_judged(wanted, before.format):
            after = await images.resize(
                file, wanted, before.format, shrink=shrink, secret=secret, allowed=allow
            )
    old, new = exact_size(before.virtual_size), exact_size(after)
    talk.say(f"{file}: resized from {old} to {new}")
    talk.note(f"{format_line(before, format)}; its partitions are the guest's to change")


def _new_size(size: str, now: int) -> int:
    sign = size.strip()[:1]
    if sign == "+":
        return now + to_bytes(size.strip()[1:], "SIZE")
    if sign == "-":
        return now - to_bytes(size.strip()[1:], "SIZE")
    return to_bytes(size, "SIZE")


async def convert(
    source: Path,
    target: Path,
    source_format: str | None,
    format: str,
    *,
    compress: bool,
    replace: bool,
    options: images.Options = DEFAULTS,
    secret_files: tuple[Path | None, Path | None] = (None, None),
    sparse: str | None = None,
    parallel: int | None = None,
    snapshot: str | None = None,
    allow: Sequence[Path] | None = None,
) -> None:
    """Copy the image, with a bar on a terminal; *secret_files*: the source's, the copy's."""
    made: ImageInfo | None = None
    async with interruptible() as work:
        secrets = [await read_secret(file) for file in secret_files]
        told = await usable(source, source_format, "--source-format", allow)
        cure = "--replace puts the copy in its place"
        await trio.to_thread.run_sync(partial(check_place, target, replace=replace, cure=cure))
        progress: images.Progress | None = None
        try:
            async with images.converting(
                source,
                target,
                source_format=told.format,
                format=format,
                compress=compress,
                replace=replace,
                options=options,
                source_secret=secrets[0],
                secret=secrets[1],
                sparse=sparse,
                parallel=parallel,
                snapshot=snapshot,
                allowed=allow,
            ) as progress:
                await show_progress(f"{source.name} → {target.name}", progress)
        finally:
            # An interruption may come when the target is in its place already.
            work.done = progress is not None and progress.fraction == 1.0
        with suppress(QmpkitError):
            made = await images.info(target, format=format)
    sizes = made and f"{human_size(made.virtual_size)}, {human_size(made.disk_size)} on disk"
    talk.say(f"{target}: {format}, {f'{sizes}, ' if sizes else ''}is made of {source}")
    talk.note(f"{source}: {format_line(told, source_format)}")


def build(guest: Literal["debian"], *, refresh: bool) -> None:
    """Build the guest's disk unless it is there, and print its path."""
    from qmpkit.testing import guests

    assert guest == "debian"
    check_cache()
    # No event loop: Ctrl-C ends the program that works, and what is half done goes.
    path = guests.build_debian(refresh=refresh, progress=talk.note)
    print(one_line(path) if sys.stdout.isatty() else path, flush=True)
    talk.note(f"run it with: qmpkit run {shell_word(path)} --user NAME")


async def usable(
    file: Path,
    format: str | None,
    option: str = "--format",
    allow: Sequence[Path] | None = None,
) -> ImageInfo:
    """What the image is that is to be opened; its format may have to be stated, with *option*.

    *allow*: the folders in which all files must be that it names, None for any.
    """
    stated = await trio.to_thread.run_sync(partial(usable_format, file, format, option=option))
    return await images.info(file, format=stated, allowed=allow)


@asynccontextmanager
async def changing(
    file: Path, format: str | None, secret_file: Path | None, allow: Sequence[Path] | None = None
) -> AsyncIterator[tuple[ImageInfo, bytes | None]]:
    """The image that the block changes, and its secret; an interruption after that is none."""
    async with interruptible() as work:
        secret = await read_secret(secret_file)
        image = await usable(file, format, allow=allow)
        yield image, secret
        work.done = True


async def _known(file: Path, format: str | None) -> ImageInfo:
    """What the image is; a file that cannot be one is a mistake in the command line."""
    if fault := await trio.to_thread.run_sync(image_fault, file):
        raise SpecInvalid([fault], str(file))
    return await images.info(file, format=format)


def format_line(image: ImageInfo, stated: str | None) -> str:
    """Its format, and how that is known."""
    guessed = "it has no header" if image.format == "raw" else "from its header"
    return f"format {image.format} ({'as stated' if stated else guessed})"
