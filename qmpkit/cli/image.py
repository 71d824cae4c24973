"""`qmpkit image …`: what each of its commands does."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import trio

from qmpkit import images
from qmpkit.cli.exits import Exit, Refusal
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
from qmpkit.spec.sizes import to_bytes

__all__ = ["build", "check", "convert", "create", "overlay", "resize", "show_info"]


async def create(file: Path, size: str, format: str) -> None:
    """Make an empty image and say so."""
    length: int = to_bytes(size, "SIZE")
    async with interruptible() as work:
        await trio.to_thread.run_sync(check_place, file)
        with size_judged(length, format):
            await images.create(file, length, format)
        work.done = True
        with suppress(QmpkitError):  # it is made, whatever hinders a look at it
            # qemu-img makes whole sectors of it.
            made = await images.info(file, format=format)
            length = made.virtual_size
    talk.say(f"{file}: an empty {format} of {exact_size(length)} is made")


async def overlay(file: Path, base: Path, base_format: str | None) -> None:
    """Make an overlay and say what is below it."""
    async with interruptible() as work:
        await trio.to_thread.run_sync(check_place, file)
        base = await stored(base)
        below = await _usable(base, base_format, "--base-format")
        await images.overlay(file, base, below.format)
        work.done = True
    talk.say(f"{file}: an overlay of {exact_size(below.virtual_size)} is made")
    talk.note(f"{base}: {_format(below, base_format)}; from now on it must not change")


async def show_info(file: Path, format: str | None, *, as_json: bool) -> None:
    """Print what the image and each of its bases is."""
    async with interruptible(), noted(f"{file}: looking …"):
        top = await _known(file, format)
        found = await images.chain(file, format=top.format)
    if as_json:
        print_json([image_to_dict(image) for image in found])
    else:
        print_chain(found, _format(top, format))


async def check(
    file: Path, format: str | None, repair: Literal["leaks", "all"] | None, *, as_json: bool
) -> int:
    """Check, or mend, the image's metadata; the exit status tells whether it is sound."""
    async with interruptible(), noted(f"{file}: checking …"):
        image = await _usable(file, format)
        if image.format == "raw":
            raise Refusal(f"{file} is raw, which has no bookkeeping that could be checked")
        report = await images.check(file, image.format, repair=repair)
    if as_json:
        print_json(report_to_dict(report))
    else:
        print_report(report, _format(image, format))
    return Exit.OK if report.ok else Exit.FAILED


async def resize(file: Path, size: str, format: str | None, *, shrink: bool) -> None:
    """Change the image's size and say from what to what."""
    async with interruptible():
        before = await _usable(file, format)
        wanted = _new_size(size, before.virtual_size)
        if wanted < before.virtual_size and not shrink:
            lost = human_size(before.virtual_size - wanted)
            raise Refusal(
                f"{file} has {exact_size(before.virtual_size)}: what lies in the last {lost} would "
                "be lost. Cure: --shrink, once the guest's file systems and partitions are smaller"
            )
        with size_judged(wanted, before.format):
            after = await images.resize(file, wanted, before.format, shrink=shrink)
    old, new = exact_size(before.virtual_size), exact_size(after.virtual_size)
    talk.say(f"{file}: resized from {old} to {new}")
    talk.note(f"{_format(before, format)}; its partitions are the guest's to change")


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
) -> None:
    """Copy the image, with a bar on a terminal."""
    made: ImageInfo | None = None
    async with interruptible() as work:
        told = await _usable(source, source_format, "--source-format")
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
            ) as progress:
                await show_progress(f"{source.name} → {target.name}", progress)
        finally:
            # An interruption may come when the target is in its place already.
            work.done = progress is not None and progress.fraction == 1.0
        with suppress(QmpkitError):
            made = await images.info(target, format=format)
    sizes = made and f"{human_size(made.virtual_size)}, {human_size(made.disk_size)} on disk"
    talk.say(f"{target}: {format}, {f'{sizes}, ' if sizes else ''}is made of {source}")
    talk.note(f"{source}: {_format(told, source_format)}")


def build(guest: Literal["debian"], *, refresh: bool) -> None:
    """Build the guest's disk unless it is there, and print its path."""
    from qmpkit.testing import guests

    assert guest == "debian"
    check_cache()
    # No event loop: Ctrl-C ends the program that works, and what is half done goes.
    path = guests.build_debian(refresh=refresh, progress=talk.note)
    print(one_line(path) if sys.stdout.isatty() else path, flush=True)
    talk.note(f"run it with: qmpkit run {shell_word(path)} --user NAME")


async def _usable(file: Path, format: str | None, option: str = "--format") -> ImageInfo:
    """What the image is that is to be opened; its format may have to be stated, with *option*."""
    stated = await trio.to_thread.run_sync(partial(usable_format, file, format, option=option))
    return await images.info(file, format=stated)


async def _known(file: Path, format: str | None) -> ImageInfo:
    """What the image is; a file that cannot be one is a mistake in the command line."""
    if fault := await trio.to_thread.run_sync(image_fault, file):
        raise SpecInvalid([fault], str(file))
    return await images.info(file, format=format)


def _format(image: ImageInfo, stated: str | None) -> str:
    guessed = "it has no header" if image.format == "raw" else "from its header"
    return f"format {image.format} ({'as stated' if stated else guessed})"
