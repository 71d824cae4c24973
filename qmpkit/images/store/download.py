"""A file from a web server, gone on with where it broke off, in bounds."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from qmpkit.errors import ChecksumWrong, PullFailed
from qmpkit.images.store.checksums import Checksum
from qmpkit.images.store.landing import Landing
from qmpkit.images.store.web import PAUSES, Interrupted, Web, ended
from qmpkit.spec.sizes import format_size

if TYPE_CHECKING:
    import httpx

__all__ = ["Download", "Landed"]

_FLUSH = 1 << 20  # bytes that are written at once
_WORTH = 1 << 20  # bytes that came, so that the server is asked again as if for the first time
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_OK, _PART, _SAME, _BEYOND = 200, 206, 304, 416


@attrs.frozen
class Landed:
    """What came: the file, its sums by algorithm, its ETag; `path` None: it is as it was."""

    path: Path | None
    sums: dict[str, str]
    etag: str


@attrs.frozen(kw_only=True)
class Download:
    """One file that is to be had: from `url`, `shown` in errors, into `folder`.

    `expected`: its checksum.  `known`: the ETag of what is here already.  `most`: bytes it
    may have.  `told` is called with the bytes that are here, and how many there are.
    """

    web: Web
    url: str
    shown: str
    folder: Path
    expected: Checksum | None
    known: str
    most: int
    told: Callable[[int, int | None], object]

    async def run(self) -> Landed:
        """Have it, and check it.  `PullFailed`, `ChecksumWrong`; OSError for a full disk.

        Cancelled, broken off or killed, what is here is gone on with next time.
        """
        algorithms = {"sha256"} | ({self.expected.algorithm} if self.expected else set())
        landing = await trio.to_thread.run_sync(Landing, self.folder, algorithms)
        try:
            checked = self.expected is not None
            await trio.to_thread.run_sync(partial(landing.resume, self.shown, checked=checked))
            return await self._checked(landing)
        finally:
            landing.close()

    async def _checked(self, landing: Landing) -> Landed:
        for last in (False, True):
            if not await self._whole(landing):
                return Landed(None, {}, self.known)
            wrong = self.expected and landing.sums[self.expected.algorithm] != self.expected.digits
            etag = landing.left.etag if landing.left else ""
            if not wrong:
                return Landed(landing.path, landing.sums, etag)
            pieced = landing.pieced
            await trio.to_thread.run_sync(landing.restart)
            if last or not pieced:  # else a piece may have been of another file: once more
                break
        raise self._wrong()

    def _wrong(self) -> ChecksumWrong:
        assert self.expected is not None
        why = f"what came is not what its {self.expected.algorithm} says"
        return ChecksumWrong(self.shown, why, "try again: a new one may just be published")

    async def _whole(self, landing: Landing) -> bool:
        """Have all of it; False when the server says that it is the known one."""
        failures, most = 0, landing.length
        while True:
            try:
                return await self._attempt(landing)
            except Interrupted as error:
                # Against the most there ever was: who begins anew each time comes no further.
                failures = 0 if landing.length >= most + _WORTH else failures
                most = max(most, landing.length)
                if failures == len(PAUSES):
                    raise PullFailed(self.shown, error.why, error.cure) from error
            await trio.sleep(PAUSES[failures])
            failures += 1

    async def _attempt(self, landing: Landing) -> bool:
        headers = self._headers(landing)
        trusted = self.expected is not None
        async with self.web.get(self.url, headers, shown=self.shown, trusted=trusted) as answer:
            if answer.status_code == _SAME and self.known:
                return False
            if answer.status_code == _BEYOND:
                return await self._beyond(landing)
            await self._begin(landing, answer)
            await self._body(landing, answer)
        total = landing.left.total if landing.left else None
        if total is not None and landing.length != total:
            raise Interrupted(self.shown, f"only {landing.length} of {total} bytes came")
        return True

    def _headers(self, landing: Landing) -> dict[str, str]:
        if not landing.length or landing.left is None:
            return {"If-None-Match": self.known} if self.known else {}
        if self.expected is not None:
            # Without If-Range: a mirror has another ETag for the same file, and the sum will tell.
            return {"Range": f"bytes={landing.length}-"}
        if not landing.left.validator:
            return {}
        return {"Range": f"bytes={landing.length}-", "If-Range": landing.left.validator}

    async def _beyond(self, landing: Landing) -> bool:
        """There is nothing after what is here."""
        if landing.left is not None and landing.left.total == landing.length:
            return True
        await trio.to_thread.run_sync(landing.restart)
        raise Interrupted(self.shown, "the server has another file there now")

    async def _begin(self, landing: Landing, answer: httpx.Response) -> None:
        """Judge by its head what comes; what is here stays only when it goes on there."""
        start, total = _extent(answer)
        known = landing.left.total if landing.left else None
        goes_on = answer.status_code == _PART and start == landing.length
        if goes_on and (known is None or total is None or known == total):
            landing.pieced = True
        elif answer.status_code == _PART:
            await trio.to_thread.run_sync(landing.restart)
            raise Interrupted(self.shown, "the server has another file there now")
        elif answer.status_code != _OK:
            why = f"the server answers {answer.status_code}, which is no file"
            raise PullFailed(self.shown, why)
        else:
            await trio.to_thread.run_sync(landing.restart)
            etag, validator = answer.headers.get("etag", ""), _validator(answer)
            learn = partial(landing.learn, self.shown, validator, etag, total)
            await trio.to_thread.run_sync(learn)
        await self._has_room(landing, total)
        self.told(landing.length, total)

    async def _has_room(self, landing: Landing, total: int | None) -> None:
        if total is None:
            return
        if total > self.most:
            raise self._too_large()
        free = (await trio.to_thread.run_sync(shutil.disk_usage, self.folder)).free
        if total - landing.length > free:
            missing = total - landing.length - free
            said = f"{os.strerror(errno.ENOSPC)}, {missing} bytes are missing"
            raise OSError(errno.ENOSPC, said, str(self.folder))

    async def _body(self, landing: Landing, answer: httpx.Response) -> None:
        pending = bytearray()
        total = landing.left.total if landing.left else None
        try:
            # Raw: where the server says that it is compressed, that is the file itself.
            async with ended(answer.aiter_raw()) as chunks:
                async for chunk in chunks:
                    pending += chunk
                    if landing.length + len(pending) > self.most:
                        raise self._too_large()
                    if len(pending) >= _FLUSH:
                        await self._flush(landing, pending, total)
        finally:
            # Cancelled it raises here, and less than a MiB is to come again.
            if pending:
                await self._flush(landing, pending, total)

    async def _flush(self, landing: Landing, pending: bytearray, total: int | None) -> None:
        data = bytes(pending)
        await trio.to_thread.run_sync(landing.write, data)
        pending.clear()
        self.told(landing.length, total)

    def _too_large(self) -> PullFailed:
        why = f"it is larger than {format_size(self.most)}"
        return PullFailed(self.shown, why, "raise the store's max_size, if you expect that")


def _extent(answer: httpx.Response) -> tuple[int, int | None]:
    """Where what comes begins, and how long the whole file is."""
    if answer.status_code == _PART:
        told = _RANGE.fullmatch(answer.headers.get("content-range", "").strip())
        if told is None:
            return -1, None
        return int(told[1]), None if told[3] == "*" else int(told[3])
    length = answer.headers.get("content-length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(answer: httpx.Response) -> str:
    """What If-Range takes: a strong ETag, else a date."""
    etag: str = answer.headers.get("etag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return str(answer.headers.get("last-modified", ""))
