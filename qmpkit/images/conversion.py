"""Copying an image into another format: all of its chain into one, whole or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Required, TypedDict, Unpack

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.chain import Chain
from qmpkit.images.data_files import drafted
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed
from qmpkit.images.keys import Key, Secret, held_keys
from qmpkit.images.opening import Opened, readable
from qmpkit.images.options import DEFAULTS, Options, option_words
from qmpkit.images.progress import Progress, percentages
from qmpkit.images.snapshot_table import listed, the_one
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.spec.sizes import to_bytes

__all__ = ["convert", "converting"]


class ConvertOptions(TypedDict, total=False):
    """What `convert` takes by name."""

    source_format: Required[str]
    format: Required[str]
    compress: bool
    replace: bool
    options: Options
    secret: Secret | None
    source_secret: Secret | None
    sparse: int | str | None
    parallel: int | None
    snapshot: str | None
    allowed: Allowed
    limits: Limits | None


_MOST_PARALLEL = 16  # coroutines, by qemu-img
_SECTOR, _LARGEST_HOLE = 512, 2 << 20  # its buffer


async def convert(
    source: StrPath,
    target: StrPath,
    *,
    source_format: str,
    format: str,
    compress: bool = False,
    replace: bool = False,
    options: Options = DEFAULTS,
    secret: Secret | None = None,
    source_secret: Secret | None = None,
    sparse: int | str | None = None,
    parallel: int | None = None,
    snapshot: str | None = None,
    allowed: Allowed = None,
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

    *options* and *secret* are those of `create`, for the target.  *source_secret* opens
    every encrypted image of the source's chain: without *secret* the copy is plain.
    *sparse*: so many bytes of zeros become a hole (512 or a multiple, 4 KiB by default; 0
    makes none, and takes all the space).  *parallel*: how many requests at once, 1 to 16
    (8 by default).  *snapshot*: a snapshot inside the source, by its name or id, that is
    copied instead of the present content.

    The chain is what the images say, and a stranger's image may name any file of this
    host as its base: *allowed* says in which folders they may be (None: anywhere), and
    another is `ImageFailed` before anything is opened.  A data file of *options* must be
    in them too.
    """
    return await _converted(
        source,
        target,
        Progress(),
        source_format=source_format,
        format=format,
        compress=compress,
        replace=replace,
        options=options,
        secret=secret,
        source_secret=source_secret,
        sparse=sparse,
        parallel=parallel,
        snapshot=snapshot,
        allowed=allowed,
        limits=limits,
    )


@asynccontextmanager
async def converting(
    source: StrPath, target: StrPath, **options: Unpack[ConvertOptions]
) -> AsyncIterator[Progress]:
    """`convert` while the block runs, which is told how far it is.

        async with images.converting("a.raw", "b.qcow2", ...) as progress:
            async for fraction in progress:
                print(f"{fraction:.0%}")

    1.0 comes once the image is in its place.  Leaving the block waits for that; an
    exception in the block, and a cancellation, end the work and leave the target as it
    was.  A failure of the work cancels the block and is raised.
    """
    progress = Progress()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(_converted, source, target, progress, **options))
            yield progress
    except BaseExceptionGroup as group:
        raise_collapsed(group)


async def _converted(
    source: StrPath, target: StrPath, progress: Progress, **options: Unpack[ConvertOptions]
) -> Path:
    return await _Work(asked=Asked.of("convert", source), **options).run(target, progress)


@attrs.frozen(kw_only=True)
class _Work:
    asked: Asked
    source_format: str
    format: str
    compress: bool = False
    replace: bool = False
    options: Options = DEFAULTS
    secret: Secret | None = None
    source_secret: Secret | None = None
    sparse: int | str | None = None
    parallel: int | None = None
    snapshot: str | None = None
    allowed: Allowed = None
    limits: Limits | None = None

    async def run(self, target: StrPath, progress: Progress) -> Path:
        with held_keys(self.source_secret, self.secret) as (source_key, key):
            self._words(key)  # which tells what does not go together
            chain, source, taken = await trio.to_thread.run_sync(self._look, source_key)
            limits = self.limits or limits_of_chain(len(chain.layers))
            async with drafted(
                target,
                self.format,
                self.options,
                key,
                doing="convert to",
                replace=self.replace,
                lasting=True,
                allowed=self.allowed,
            ) as (draft, data):
                words = self._words(key, data.path if data else "")
                keys = {**source.fds, **(key.fds if key else {})}
                await run_qemu_img(
                    [*words, *taken, *source.words, "--", source.name, draft.path],
                    draft.asked,
                    limits,
                    fds={**draft.fds, **(data.fds if data else {}), **keys},
                    on_stdout=percentages(progress),
                    opens=chain.files,
                    long=True,
                )
            placed = draft.placed().path
            progress._set(1.0)
            return placed

    def _look(self, key: Key | None) -> tuple[Chain, Opened, list[str]]:
        asked, format = self.asked, self.source_format
        chain, source = readable(asked, format, key, self.allowed, "source_secret")
        if self.snapshot is None:
            return chain, source, []
        found = the_one(asked, listed(asked, format), self.snapshot)
        return chain, source, ["-l", f"snapshot.id={found.id}"]

    def _words(self, key: Key | None, data: str = "") -> list[str]:
        options = option_words(self.options, self.format, key, data=data)
        words = ["convert", "-p", "-O", self.format, *options]
        words += key.words if key else ()
        if self.compress:
            if self.options.data_file is not None:
                raise SpecInvalid([Fault("compress", "a data file holds nothing compressed")])
            words.append("-c")
        if self.sparse is not None:
            words += ["-S", str(_holes(self.sparse))]
        if self.parallel is not None:
            if not 1 <= self.parallel <= _MOST_PARALLEL:
                why = f"can be 1 to {_MOST_PARALLEL}, not {self.parallel}"
                raise SpecInvalid([Fault("parallel", why)])
            words += ["-m", str(self.parallel)]
        return words


def _holes(sparse: int | str) -> int:
    size = to_bytes(sparse, "sparse")
    if size % _SECTOR or size > _LARGEST_HOLE:
        why = f"is a multiple of {_SECTOR} bytes up to {_LARGEST_HOLE}, not {size}"
        raise SpecInvalid([Fault("sparse", why)])
    return size
