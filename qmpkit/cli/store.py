"""The image store's commands: what each of them does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Unpack

import attrs
import trio

from qmpkit import images
from qmpkit.cli.exits import Exit
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.progress import Advance, transfer
from qmpkit.cli.safe import one_line
from qmpkit.cli.sizes import human_size
from qmpkit.cli.tables import print_table
from qmpkit.cli.talk import noted, print_json, talk
from qmpkit.images import GcReport, Image, Pulling, Verified
from qmpkit.images.store.catalogue import catalogue
from qmpkit.images.store.store import PullOptions

__all__ = ["collect", "list_catalogue", "list_images", "pull", "remove", "verify"]

_SHORT = 12  # digits of a digest that people read
_MOVING = {"download": "downloading", "unpack": "unpacking"}


async def pull(what: str, ca_file: Path | None, **options: Unpack[PullOptions]) -> None:
    """Pull it, with a bar on a terminal, and print its path."""
    store = images.Store(ca_file=ca_file)
    async with interruptible() as work:
        async with store.pulling(what, **options) as pulling:
            await _show(what, pulling)
        work.done = True
    image = pulling.image
    print(one_line(image.path) if sys.stdout.isatty() else image.path, flush=True)
    called = next((name for name in image.names if name == options.get("name")), image.name)
    size = human_size(image.virtual_size)
    talk.say(f"{called}: {image.format}, {size}, sha256 {image.digest[:_SHORT]}…")
    if image.vouched:
        talk.note(f"checked by {image.vouched}")
    else:
        talk.note("nothing vouches for it: --sha256 or --checksums would")


async def _show(what: str, pulling: Pulling) -> None:
    stage, file = "", what.rpartition("/")[2] or what
    advance: Advance = _nothing
    with ExitStack() as bars:
        async for step in pulling:
            if step.stage != stage:
                bars.close()
                stage, advance = step.stage, _nothing
                if stage in _MOVING:
                    advance = bars.enter_context(transfer(f"{_MOVING[stage]} {file}"))
                elif stage == "waiting":
                    talk.note(f"{file}: another pulls it too, waiting …")
            advance(step.done, step.total)


def _nothing(done: int, total: int | None) -> None:
    pass


async def list_images(*, as_json: bool) -> None:
    """Print what is in the store."""
    found = await images.Store().images()
    if as_json:
        print_json([_image_to_dict(image) for image in found])
        return
    rows = [
        (
            ", ".join(image.names) or "(none)",
            image.digest[:_SHORT],
            image.format,
            human_size(image.virtual_size),
            human_size(image.size),
            image.pulled.astimezone().strftime("%Y-%m-%d %H:%M"),
            image.source,
        )
        for image in found
    ]
    headings = ("NAME", "DIGEST", "FORMAT", "SIZE", "ON DISK", "PULLED", "FROM")
    if rows:
        print_table(headings, rows, prose=False)
    else:
        talk.note("the store is empty; qmpkit image ls --catalogue tells what can be pulled")


def _image_to_dict(image: Image) -> dict[str, Any]:
    table = attrs.asdict(image)
    return {**table, "path": str(image.path), "pulled": image.pulled.isoformat()}


async def list_catalogue(*, as_json: bool) -> None:
    """Print what can be pulled by a name."""
    entries = await trio.to_thread.run_sync(catalogue)
    if as_json:
        print_json({name: attrs.asdict(entry) for name, entry in entries.items()})
        return
    rows = [(name, ", ".join(entry.architectures), entry.title) for name, entry in entries.items()]
    print_table(("NAME", "FOR", "WHAT"), rows, prose=True)


async def remove(names: Sequence[str], look_in: Sequence[Path], *, gone: bool) -> None:
    """Remove each of them, and say so."""
    store = images.Store()
    for name in names:
        async with interruptible() as work:
            image = await store.remove(name, gone=gone, look_in=look_in)
            work.done = True
        talk.say(f"{name}: removed, {human_size(image.size)}")


async def collect(look_in: Sequence[Path], *, gone: bool, dry_run: bool, as_json: bool) -> None:
    """Remove what nobody needs; say what, and why the rest stays."""
    async with interruptible() as work, noted("looking for what is needed …"):
        report = await images.Store().gc(gone=gone, look_in=look_in, dry_run=dry_run)
        work.done = True
    if as_json:
        print_json(_report_to_dict(report))
        return
    for path in report.removed:
        talk.say(f"{path}: {'would go' if dry_run else 'removed'}")
    for kept in report.kept:
        if not kept.image.names:
            talk.note(f"{kept.image.digest[:_SHORT]} stays: {'; '.join(kept.why)}")
    talk.say(f"{human_size(report.freed)} {'would be ' if dry_run else ''}freed")


def _report_to_dict(report: GcReport) -> dict[str, Any]:
    return {
        "removed": list(map(str, report.removed)),
        "freed": report.freed,
        "kept": [{"digest": kept.image.digest, "why": list(kept.why)} for kept in report.kept],
    }


async def verify(names: Sequence[str], *, as_json: bool) -> int:
    """Read them, and tell by the exit status whether all are what they were."""
    store, found = images.Store(), list[Verified]()
    async with interruptible(), noted("reading …"):
        for name in names or (None,):
            found += await store.verify(name)
    if as_json:
        print_json([{"digest": each.image.digest, "problem": each.problem} for each in found])
    else:
        for each in found:
            print(one_line(f"{each.image.name}: {each.problem or 'sound'}"))
    for each in found:
        if not each.ok:
            talk.note(f"{each.image.name}: qmpkit image pull --refresh mends it")
    return Exit.OK if all(each.ok for each in found) else Exit.FAILED
