"""One pull: from a source to an image in the store.

Whatever is fetched lies in a directory of the source's own, which is locked: who pulls the
same meanwhile, in this program or another, waits, and finds the image, or goes on with
what is there when the first one gave up.  Nothing is in the store before it is whole,
checked and safe on disk.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.errors import ChecksumWrong, Fault, ImageRefused, PullFailed, SpecInvalid
from qmpkit.host.headers import read_header
from qmpkit.images.in_use import refuse_used
from qmpkit.images.store import index
from qmpkit.images.store.download import Download
from qmpkit.images.store.index import Format, Image, Name
from qmpkit.images.store.landing import DATA
from qmpkit.images.store.layout import Layout
from qmpkit.images.store.locks import held, held_folder
from qmpkit.images.store.progress import Pulling, Stage
from qmpkit.images.store.sources import Source, is_url
from qmpkit.images.store.unpack import PACKED, Copied, Copying
from qmpkit.images.store.vetting import vetted
from qmpkit.images.store.vouching import Expected, expected_of
from qmpkit.images.store.web import Web, web
from qmpkit.images.tool import Asked, cure_of

__all__ = ["Pull"]

_CLEANUP_GRACE = 5.0  # seconds; the bound is for a file system that hangs

_DRAFT = "image"  # what is unpacked or copied, beside the download itself

_under_way: dict[Path, Pulling] = {}
"""The pulls of this program, by the directory of each: who waits for one tells of it."""


@attrs.frozen
class _Brought:
    """What is in the draft, and the sums of what was read for it; `etag` of the server's."""

    draft: Path
    digest: str
    size: int
    sums: dict[str, str]
    etag: str = ""


@attrs.frozen(kw_only=True)
class Pull:
    """What is to be pulled, and how; `Store.pull` says more."""

    layout: Layout
    source: Source
    max_size: int
    stall: float
    ca_file: Path | None
    refresh: bool
    pulling: Pulling

    async def run(self) -> Image:
        """The image, in the store."""
        try:
            image = await self._run()
        except OSError as error:
            said = error.strerror or str(error)
            raise PullFailed(self.source.shown, said, cure_of(said)) from error
        self.pulling._finish(image)
        return image

    async def _run(self) -> Image:
        await trio.to_thread.run_sync(self.layout.make)
        names = await self._names()
        self._refuse_taken(names.get(self.source.name))
        async with AsyncExitStack() as stack:
            waited = await self._take_turn(stack)
            if waited and (found := await self._pulled_meanwhile(self._latest(names))) is not None:
                return found
            client = (
                await stack.enter_async_context(web(self.stall, self.ca_file))
                if self._asks
                else None
            )
            stack.enter_context(_told_to_others(self._folder, self.pulling))
            image = await self._had(client)
            with suppress(OSError):  # gc takes what remains
                await trio.to_thread.run_sync(shutil.rmtree, self._folder)
        return image

    @property
    def _folder(self) -> Path:
        return self.layout.partial / self.source.key

    @property
    def _asks(self) -> bool:
        """Whether anything is to come from a server."""
        lists = self.source.checksums, self.source.signature
        return not self.source.local or any(map(is_url, lists))

    async def _names(self) -> dict[str, Name]:
        return await trio.to_thread.run_sync(index.names, self.layout)

    def _latest(self, names: dict[str, Name]) -> Name | None:
        """What was had of this source last, whatever it is called."""
        ours = (meant for meant in names.values() if meant.source == self.source.shown)
        return max(ours, key=lambda meant: meant.told, default=None)

    def _refuse_taken(self, meant: Name | None) -> None:
        if meant is not None and meant.source != self.source.shown and not self.source.shipped:
            what = f"the name {self.source.name!r} is that of an image from {meant.source}"
            raise SpecInvalid([Fault("", what, "give this one another (--name)")])

    async def _take_turn(self, stack: AsyncExitStack) -> bool:
        """Have the source's directory; whether that took waiting for another who had it."""
        waited = False

        def waiting() -> None:
            nonlocal waited
            waited = True
            self.pulling._set("waiting")
            if (other := _under_way.get(self._folder)) is not None:
                nursery.start_soon(self.pulling._mirror, other)

        try:
            async with trio.open_nursery() as nursery:
                await stack.enter_async_context(held_folder(self._folder, waiting))
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_collapsed(group)
        return waited

    async def _pulled_meanwhile(self, before: Name | None) -> Image | None:
        """What the other has pulled, unless more is demanded of it here."""
        if self.source.expected is not None or self.source.checksums or self.refresh:
            return None
        found = self._latest(await self._names())
        if found is None or found == before:
            return None
        images = await trio.to_thread.run_sync(index.images, self.layout)
        image = next((image for image in images if image.digest == found.digest), None)
        if image is not None:
            with suppress(OSError):  # made by us, to wait in
                await trio.to_thread.run_sync(self._folder.rmdir)
            return await self._named(image, Expected(None, ""), found.etag)
        return None

    async def _had(self, client: Web | None) -> Image:
        """The image, fetched unless it is here."""
        self.pulling._set("checksums")
        async with self._nothing_half_left():
            expected = await expected_of(self.source, client)
            known, etag = None, ""
            if not self.refresh and not self.source.local:  # a file here is read anyway
                known, etag = await trio.to_thread.run_sync(self._known, expected)
            if known is not None and expected.checksum is not None:
                return await self._named(known, expected, etag)
            brought = await self._bring(client, expected, etag)
            if brought is None:
                assert known is not None, "the server has been told of it"
                return await self._named(known, expected, etag)
            return await self._publish(brought, expected)

    def _known(self, expected: Expected) -> tuple[Image | None, str]:
        """The image as it is here, if it is the one expected, or may be; its ETag; blocking."""
        every = [image for image in index.images(self.layout) if index.in_place(image)]
        if (sum_ := expected.checksum) is not None:
            same = (image for image in every if image.checksums.get(sum_.algorithm) == sum_.digits)
            return next(same, None), ""
        meant = self._latest(index.names(self.layout))
        if meant is None or not meant.etag:
            return None, ""
        found = next((image for image in every if image.digest == meant.digest), None)
        return found, meant.etag if found is not None else ""

    @asynccontextmanager
    async def _nothing_half_left(self) -> AsyncIterator[None]:
        """What cannot be gone on with is removed; a download that was broken off stays."""
        try:
            yield
        except BaseException as error:
            useless = isinstance(error, OSError | ChecksumWrong | ImageRefused)
            clear = partial(_clear, self._folder, everything=useless)
            with trio.move_on_after(_CLEANUP_GRACE, shield=True):
                await trio.to_thread.run_sync(clear, abandon_on_cancel=True)
            raise

    async def _bring(self, client: Web | None, expected: Expected, etag: str) -> _Brought | None:
        """The image in a draft; None when the server says that it is the one with *etag* still."""
        if self.source.local:
            return await self._copied(Path(self.source.where), expected)
        assert client is not None, "a URL is asked for"
        download = Download(
            web=client,
            url=self.source.where,
            shown=self.source.shown,
            folder=self._folder,
            expected=expected.checksum,
            known=etag,
            most=self.max_size,
            told=self._telling("download"),
        )
        landed = await download.run()
        if landed.path is None:
            return None
        path, sums = landed.path, landed.sums
        if await trio.to_thread.run_sync(_packed, path):
            return attrs.evolve(
                await self._unpacked(path, frozenset()), sums=sums, etag=landed.etag
            )
        size = (await trio.to_thread.run_sync(path.stat)).st_size
        return _Brought(path, sums["sha256"], size, sums, landed.etag)

    async def _copied(self, path: Path, expected: Expected) -> _Brought:
        if not await trio.to_thread.run_sync(_holds_content, path):
            raise ImageRefused(self.source.shown, "this is neither a file nor a disk")
        asked = Asked("pull", path)
        await trio.to_thread.run_sync(partial(refuse_used, asked, for_writing=False))
        sum_ = expected.checksum
        algorithms = frozenset({"sha256"} | ({sum_.algorithm} if sum_ else set()))
        brought = await self._unpacked(path, algorithms, "download")
        if sum_ is not None and brought.sums[sum_.algorithm] != sum_.digits:
            why = f"it is not what its {sum_.algorithm} says"
            raise ChecksumWrong(self.source.shown, why, "have it anew")
        return brought

    async def _unpacked(
        self, origin: Path, algorithms: frozenset[str], stage: Stage = "unpack"
    ) -> _Brought:
        draft = self._folder / _DRAFT
        copying = Copying(
            source=self.source.shown,
            origin=origin,
            target=draft,
            packed=await trio.to_thread.run_sync(_packed, origin),
            most=self.max_size,
            algorithms=algorithms,
            told=self._telling(stage),
        )
        done: Copied = await copying.run()
        return _Brought(draft, done.digest, done.size, done.sums)

    def _telling(self, stage: Stage) -> Callable[[int, int | None], None]:
        return partial(self.pulling._set, stage)

    async def _publish(self, brought: _Brought, expected: Expected) -> Image:
        self.pulling._set("check", 0, brought.size)
        info = await vetted(self.source.shown, brought.draft, self.source.format)
        image = Image(
            digest=brought.digest,
            path=self.layout.blob(brought.digest, info.format),
            format=cast(Format, info.format),  # the vetted have no other
            size=brought.size,
            virtual_size=info.virtual_size,
            source=self.source.shown,
            pulled=datetime.now(UTC),
            checksums=brought.sums,
            vouched=expected.vouched,
        )
        # Abandoned it does no harm, and a large file may take it long.
        await trio.to_thread.run_sync(_safe_on_disk, brought.draft, abandon_on_cancel=True)
        meant = self._meaning(image.digest, brought.etag)
        async with held(self.layout.lock):
            await trio.to_thread.run_sync(
                partial(
                    index.publish,
                    self.layout,
                    brought.draft,
                    image,
                    self.source.name,
                    meant,
                    replace=self.refresh,
                )
            )
            return await trio.to_thread.run_sync(index.find, self.layout, image.digest)

    def _meaning(self, digest: str, etag: str) -> Name:
        return Name(digest, self.source.shown, etag, time.time())

    async def _named(self, image: Image, expected: Expected, etag: str) -> Image:
        """*image*, which is here, under this name too."""
        if self.source.format not in (None, image.format):
            why = f"it is {image.format}, not {self.source.format} as stated"
            raise ImageRefused(self.source.shown, why)
        vouched = attrs.evolve(image, vouched=expected.vouched or image.vouched)
        async with held(self.layout.lock):
            return await trio.to_thread.run_sync(self._enter, vouched, etag)

    def _enter(self, image: Image, etag: str) -> Image:
        """Give the name to what is here; blocking, with the store's lock held."""
        if not index.in_place(image):
            raise PullFailed(self.source.shown, "it was removed in this moment", "try again")
        index.write_record(self.layout, image)
        meant = self._meaning(image.digest, etag)
        index.give_name(self.layout, self.source.name, meant)
        return index.find(self.layout, image.digest)


class _told_to_others:
    def __init__(self, folder: Path, pulling: Pulling) -> None:
        self._folder, self._pulling = folder, pulling

    def __enter__(self) -> None:
        _under_way[self._folder] = self._pulling

    def __exit__(self, *_: object) -> None:
        del _under_way[self._folder]


def _clear(folder: Path, *, everything: bool) -> None:
    if everything or not _begun(folder / DATA):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(OSError):
            (folder / _DRAFT).unlink(missing_ok=True)


def _begun(download: Path) -> bool:
    """Whether there is anything to go on with."""
    with suppress(FileNotFoundError):
        return download.stat().st_size > 0
    return False


def _holds_content(path: Path) -> bool:
    """Whether it is one that can be read to its end; blocking, raises OSError."""
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _packed(path: Path) -> str:
    """How the file is packed, "" when it is not; blocking, raises OSError."""
    found = read_header(path).format
    return found if found in PACKED else ""


def _safe_on_disk(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
