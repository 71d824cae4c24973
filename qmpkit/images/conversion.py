"""Copying an image into another format: all of its chain into one, whole or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.images.drafts import Draft, StrPath, new_image
from qmpkit.images.in_use import checked_chain
from qmpkit.images.progress import Progress, percentages
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits

__all__ = ["convert", "converting"]


async def convert(
    source: StrPath,
    target: StrPath,
    *,
    source_format: str,
    format: str,
    compress: bool = False,
    replace: bool = False,
    limits: Limits | None = None,
) -> Path:
    """Copy *source*, with all that is below it, into one new image; its absolute path.

    Both formats are stated, by QEMU's names.  *compress* makes a smaller qcow2 or vmdk,
    slowly.  The target gets its name only when it is whole and safe on disk; with
    *replace* it takes the place of the file there in one step (*source* itself, too) and
    keeps its mode and, as far as this user may, its owner; no QEMU can open that file for
    writing meanwhile.  Without it an existing file is an error, and the mode 0644 less
    the umask.

    `ImageFailed` when qemu-img fails, the chain is broken, *target* exists or one of
    *limits* is met (None: memory alone, 1 GiB and 40 MiB for each image of the chain);
    `ImageInUse` when a QEMU writes to *source* or has *target* open.  Cancelled, failed
    or killed: the target is as it was.

    The chain is what the images say, and a stranger's image may name any file of this
    host as its base: look at `chain()` first.
    """
    work = _Work(Asked.of("convert", source), source_format, format, compress, limits)
    return await work.run(target, replace, Progress())


@asynccontextmanager
async def converting(
    source: StrPath,
    target: StrPath,
    *,
    source_format: str,
    format: str,
    compress: bool = False,
    replace: bool = False,
    limits: Limits | None = None,
) -> AsyncIterator[Progress]:
    """`convert` while the block runs, which is told how far it is.

        async with images.converting("a.raw", "b.qcow2", ...) as progress:
            async for fraction in progress:
                print(f"{fraction:.0%}")

    1.0 comes once the image is in its place.  Leaving the block waits for that; an
    exception in the block, and a cancellation, end the work and leave the target as it
    was.  A failure of the work cancels the block and is raised.
    """
    work = _Work(Asked.of("convert", source), source_format, format, compress, limits)
    progress = Progress()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.run, target, replace, progress)
            yield progress
    except BaseExceptionGroup as group:
        raise_collapsed(group)


@attrs.frozen
class _Work:
    asked: Asked
    source_format: str
    format: str
    compress: bool
    limits: Limits | None

    async def run(self, target: StrPath, replace: bool, progress: Progress) -> Path:
        chain = await trio.to_thread.run_sync(checked_chain, self.asked, self.source_format)
        limits = self.limits or limits_of_chain(len(chain.layers))
        doing = "convert to"
        async with new_image(
            target, self.format, doing=doing, replace=replace, lasting=True
        ) as draft:
            words = self._words(draft)
            told = percentages(progress)
            opens = [layer.path for layer in chain.layers]
            await run_qemu_img(
                words, draft.asked, limits, fds=draft.fds, on_stdout=told, opens=opens
            )
        placed = draft.placed().path
        progress._set(1.0)
        return placed

    def _words(self, draft: Draft) -> list[str]:
        words = ["convert", "-p", "-f", self.source_format, "-O", self.format]
        if self.compress:
            words.append("-c")
        return [*words, "--", str(self.asked.path), draft.path]
