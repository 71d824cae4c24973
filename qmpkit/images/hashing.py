"""Checksums of files that may take minutes to read: told of, and cancelled between two pieces."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Protocol

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.images.tool import Asked
from qmpkit.spec.backups import CHECKSUMS

__all__ = ["Digest", "Read", "copied", "digest_of", "trickling"]

_NEW = next(iter(CHECKSUMS))
_PIECE = 16 << 20  # between two looks at a cancellation: 80 ms where the CPU has no SHA-256
_BUFFER = 256 << 10  # stays in the CPU's cache: a quarter faster than pieces of megabytes
_COPY = 64 << 20
_NO_SHARING = (  # what the kernel says of files, or of itself, that it cannot copy between
    errno.EXDEV,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EPERM,  # a container's filter of system calls
)
_TRICKLE = 0.1  # seconds between two flushes

Read = Callable[[int], object]
"""Is told how many bytes more have been read; must not block."""


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@attrs.frozen
class Digest:
    """The checksum of a file, as a manifest has it, and its length in bytes."""

    checksum: str
    length: int


async def digest_of(
    path: Path,
    asked: Asked,
    read: Read | None = None,
    *,
    safe: bool,
    algorithm: str = _NEW,
) -> Digest:
    """Read the whole file; with *safe* what is read is on disk afterwards (fsync).

    *algorithm*: one of `CHECKSUMS`.  Raises ImageFailed, in the name of *asked*, for what
    the file system says.
    """
    digest, length = _hash(algorithm), 0
    try:
        file = await trio.to_thread.run_sync(_opened, path)
        with file:
            async with _synced(file if safe else None):
                while count := await trio.to_thread.run_sync(_update, digest, file):
                    length += count
                    if read is not None:
                        read(count)
    except OSError as error:
        raise asked.failed_by(error) from error
    return Digest(f"{algorithm}:{digest.hexdigest()}", length)


def _hash(algorithm: str) -> _Hash:
    if algorithm != _NEW:
        return hashlib.new(algorithm)
    import xxhash  # whoever makes no backups needs it not

    return xxhash.xxh3_128()


@asynccontextmanager
async def trickling(paths: Iterable[Path], asked: Asked) -> AsyncIterator[None]:
    """What QEMU writes to these files within the block goes on to the disk by and by.

    All of it at once, in the end, would hold up whoever flushes there too: the guests.
    Raises ImageFailed, in the name of *asked*, when the disk fails: a flush is told of that
    once, so the one that makes all of it safe would not be.
    """
    ended = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(_trickle, path, asked, ended)
            yield
            ended.set()
    except BaseExceptionGroup as group:
        raise_collapsed(group)


async def _trickle(path: Path, asked: Asked, ended: trio.Event) -> None:
    limiter = trio.CapacityLimiter(1)  # a slow disk must not take everybody's threads
    flush = partial(trio.to_thread.run_sync, abandon_on_cancel=True, limiter=limiter)
    try:
        file = await trio.to_thread.run_sync(_opened, path)
        with file:
            while True:
                with trio.move_on_after(_TRICKLE):
                    return await ended.wait()
                await flush(os.fdatasync, file.fileno())
    except OSError as error:
        raise asked.failed_by(error) from error


@asynccontextmanager
async def _synced(file: FileIO | None) -> AsyncIterator[None]:
    """The disk writes while the block computes; what the file had before is safe after it."""
    try:
        async with trio.open_nursery() as nursery:
            if file is not None:
                # Abandoned, it ends by itself, and does no harm.
                sync = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
                nursery.start_soon(sync, os.fsync, file.fileno())
            yield
    except BaseExceptionGroup as group:
        raise_collapsed(group)


def _opened(path: Path) -> FileIO:
    return path.open("rb", buffering=0)


def _update(digest: _Hash, file: FileIO) -> int:
    buffer = memoryview(bytearray(_BUFFER))
    done = 0
    while done < _PIECE and (count := file.readinto(buffer)):
        digest.update(buffer[:count])
        done += count
    return done


async def copied(source: Path, target: Path, asked: Asked) -> None:
    """Write a copy of *source* at *target*, which is not there; sharing blocks where it can be.

    Cancelled or failed, what there is of it stays: it is the caller's draft.
    """
    try:
        with (
            await trio.to_thread.run_sync(source.open, "rb") as old,
            await trio.to_thread.run_sync(target.open, "xb") as new,
        ):
            while await trio.to_thread.run_sync(_copy, old.fileno(), new.fileno()):
                pass
    except OSError as error:
        raise asked.failed_by(error) from error


def _copy(old: int, new: int) -> int:
    """Go on where both files stand.  By hand where the kernel does not: from a tmpfs to a disk."""
    try:
        if count := os.copy_file_range(old, new, _COPY):
            return count  # none is the end, or a file system that only pretends
    except OSError as error:
        if error.errno not in _NO_SHARING:
            raise
    piece = os.read(old, _BUFFER)
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(new, rest) :]
    return len(piece)
