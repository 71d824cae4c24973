"""Copying an image to its draft, unpacked on the way, in bounds of size and memory."""

from __future__ import annotations

import bz2
import errno
import hashlib
import lzma
import os
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs
import trio

from qmpkit.errors import BinaryMissing, ImageRefused, PullFailed
from qmpkit.process.limits import Limits
from qmpkit.process.tools import Completed, run
from qmpkit.spec.sizes import GIB, MIB, format_size

__all__ = ["PACKED", "Copied", "Copying", "hashed"]

PACKED = ("xz", "gzip", "bzip2", "zstd")
"""What is unpacked, by the names that `host.headers` has for it."""

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_MEMORY = 512 * MIB  # for a dictionary: xz -9 has one of 64 MiB

Told = Callable[[int, int | None], object]


@attrs.frozen
class Copied:
    """What was written: its SHA-256 and its bytes; `sums`: of what was read, by algorithm."""

    digest: str
    size: int
    sums: dict[str, str]


class _Damaged(Exception):
    """What is packed cannot be unpacked."""


class _TooLarge(Exception):
    """More bytes came out than may."""


@attrs.frozen(kw_only=True)
class Copying:
    """One image that is written to `target` from `origin`, a file.

    `packed`: how, one of `PACKED`; "" is not.  `source` is what an error names; `most`:
    bytes that may come of it.  `algorithms`: the sums wanted of what is read.  `told` is
    called with the bytes that were read, and how many there are.
    """

    source: str
    origin: Path
    target: Path
    packed: str
    most: int
    algorithms: frozenset[str]
    told: Told

    async def run(self) -> Copied:
        """Do it.  `PullFailed` and `ImageRefused` for what is damaged or too large; OSError.

        zstd is unpacked by the program of that name: `BinaryMissing` without it.
        A cancellation ends it within moments.
        """
        try:
            if self.packed != "zstd":
                return await trio.to_thread.run_sync(self._copy)
            await self._by_program()
            sums = await trio.to_thread.run_sync(hashed, self.origin, set(self.algorithms))
            content = await trio.to_thread.run_sync(hashed, self.target, {"sha256"})
            size = (await trio.to_thread.run_sync(self.target.stat)).st_size
            return Copied(content["sha256"], size, sums)
        except _TooLarge as error:
            raise self._too_large() from error
        except _Damaged as error:
            raise ImageRefused(self.source, f"it cannot be unpacked: {error}") from error

    def _too_large(self) -> PullFailed:
        why = f"unpacked it is larger than {format_size(self.most)}"
        return PullFailed(self.source, why, "raise the store's max_size, if you expect that")

    def _copy(self) -> Copied:
        sums = {name: hashlib.new(name) for name in self.algorithms}
        content, size = hashlib.sha256(), 0
        with self.origin.open("rb") as file, _Sparse(self.target) as target:
            total, read = os.fstat(file.fileno()).st_size, 0

            def more() -> bytes:
                nonlocal read
                trio.from_thread.check_cancelled()
                chunk = file.read(_PIECE)
                for each in sums.values():
                    each.update(chunk)
                read += len(chunk)
                trio.from_thread.run_sync(self.told, read, total)
                return chunk

            for piece in _pieces(more, self.packed):
                trio.from_thread.check_cancelled()
                size += len(piece)
                if size > self.most:
                    raise _TooLarge
                content.update(piece)
                target.write(piece)
        digits = {name: each.hexdigest() for name, each in sums.items()}
        return Copied(content.hexdigest(), size, digits)

    async def _by_program(self) -> None:
        limits = Limits(memory=1 * GIB, file_size=self.most)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        opened = partial(os.open, self.origin, os.O_RDONLY | os.O_CLOEXEC)
        origin = await trio.to_thread.run_sync(opened)
        try:
            target = await trio.to_thread.run_sync(partial(os.open, self.target, flags, 0o600))
            try:
                words = ["zstd", "-d", "-q", "-c", "--sparse"]
                done = await run(words, fds={0: origin, 1: target}, limits=limits, name="zstd")
            finally:
                os.close(target)
        except BinaryMissing as error:
            raise BinaryMissing("zstd is not on PATH", "sudo apt install zstd") from error
        finally:
            os.close(origin)
        _judge(done)


def _judge(done: Completed) -> None:
    if done.status.success:
        return
    if done.status.signal == signal.SIGXFSZ or "File too large" in done.err:
        raise _TooLarge
    if (full := os.strerror(errno.ENOSPC)) in done.err:
        raise OSError(errno.ENOSPC, full)
    raise _Damaged(done.err.strip().removeprefix("zstd: ") or f"zstd ended with {done.status}")


def hashed(path: Path, algorithms: set[str], told: Told | None = None) -> dict[str, str]:
    """The sums of a file, by algorithm; in a thread of trio's, which a cancellation ends."""
    sums, read = {name: hashlib.new(name) for name in algorithms}, 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(_PIECE):
            trio.from_thread.check_cancelled()
            for each in sums.values():
                each.update(chunk)
            read += len(chunk)
            if told is not None:
                trio.from_thread.run_sync(told, read, total)
    return {name: each.hexdigest() for name, each in sums.items()}


class _Sparse:
    """A new file, of which pieces of zeros take no space."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb")
        self._end = 0

    def __enter__(self) -> _Sparse:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.truncate(self._end)
        finally:
            with suppress(OSError):  # of a full disk has been told
                self._file.close()

    def write(self, piece: bytes) -> None:
        if piece == _ZEROS[: len(piece)]:
            self._file.seek(len(piece), os.SEEK_CUR)
        else:
            self._file.write(piece)
        self._end += len(piece)


class _Decoder(Protocol):
    """What the standard library's decoders have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY),
    "bzip2": bz2.BZ2Decompressor,
    "gzip": _Gzip,
}


def _pieces(more: Callable[[], bytes], packed: str) -> Iterator[bytes]:
    """What is in the file, a MiB at most at a time; one stream after the other."""
    if not packed:
        while chunk := more():
            yield chunk
        return
    new = _DECODERS[packed]
    decoder = new()
    while True:
        data = b""
        if decoder.eof:
            # Zeros between two streams, or after the last, fill it up.
            data = decoder.unused_data.lstrip(b"\0")
            while not data and (chunk := more()):
                data = chunk.lstrip(b"\0")
            if not data:
                return
            decoder = new()
        elif decoder.needs_input:
            data = more()
        piece = _decoded(decoder, data)
        if not piece and not data and decoder.needs_input and not decoder.eof:
            raise _Damaged("it ends too early")
        if piece:
            yield piece


def _decoded(decoder: _Decoder, data: bytes) -> bytes:
    try:
        return decoder.decompress(data, _PIECE)
    except (lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
        raise _Damaged(str(error)) from error
