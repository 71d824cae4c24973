"""What a process says, in bounds: the last lines in memory, all of it in a bounded file."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from qmpkit._trio import in_thread, service_nursery

__all__ = ["BoundedLog", "StderrLog", "Tail", "bounded_log", "writing"]

logger = logging.getLogger(__name__)

MIB = 1 << 20
LOG_LIMIT = 16 * MIB
"""Bytes a log and its rotated predecessor may take together."""

BACKLOG_LIMIT = 4 * MIB
"""Bytes that may wait in memory for a slow disk."""

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_STDOUT, _STDERR = 1, 2

FLUSH_GRACE = 2.0
"""Seconds that what is still in memory may take to be written at the end."""


class Tail:
    """The last `lines` lines of a byte stream, and never more than `limit` bytes."""

    def __init__(self, lines: int = 40, limit: int = 16384) -> None:
        self._lines = lines
        self._limit = limit
        self._data = bytearray()

    def feed(self, chunk: bytes | bytearray) -> None:
        """Append *chunk*, forget what is too old."""
        self._data += chunk
        del self._data[: -self._limit]

    def __str__(self) -> str:
        text = self._data.decode(errors="replace")
        return "".join(text.splitlines(keepends=True)[-self._lines :])


class BoundedLog:
    """A log file that never grows beyond its limit and never holds up who writes to it.

    `write` only queues; the service `run` does the writing in a worker thread.
    Past half of `limit` the file is renamed to `<name>.1`, replacing the one
    before.  A disk that fails or cannot follow costs log, never the caller:
    `error` keeps the last failure, `dropped` counts the bytes that were lost.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int = LOG_LIMIT) -> None:
        self.path = Path(path)
        self.limit = limit
        self.dropped = 0
        self.error: OSError | None = None
        self._pending: deque[bytes] = deque()
        self._backlog = 0
        self._wake = trio.Event()
        self._written = trio.Event()
        self._written.set()
        self._running = trio.Event()

    def write(self, data: bytes | bytearray) -> None:
        """Queue *data*; to be called in the trio thread.  Never blocks, never raises."""
        if self._backlog + len(data) > BACKLOG_LIMIT:
            self.dropped += len(data)
            return
        self._pending.append(bytes(data))
        self._backlog += len(data)
        if self._written.is_set():
            self._written = trio.Event()
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled, then write what is left (2 s at most)."""
        self._running.set()
        try:
            await self._wake.wait()  # many a log stays empty
        finally:
            if self._pending:
                await self._write_on()

    async def _write_on(self) -> None:
        # The writer is a service: a write that is under way at the cancellation is waited
        # for, because its thread would die with the interpreter.
        async with service_nursery() as services:
            services.start_soon(self._write_queued, name=f"log writer of {self.path.name}")
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(FLUSH_GRACE, shield=True):
                    await self._written.wait()

    async def _write_queued(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            data = b"".join(self._pending)
            self._pending.clear()
            self._backlog = 0
            try:
                await in_thread(partial(self._append, data), abandon_on_cancel=True)
            except OSError as error:  # the system allows no more threads
                self._lose(data, error)
            if not self._pending:
                self._written.set()

    def _append(self, data: bytes) -> None:
        half = self.limit // 2
        try:
            for start in range(0, len(data), half):
                self._append_part(data[start : start + half], half)
        except OSError as error:
            self._lose(data, error)

    def _lose(self, data: bytes, error: OSError) -> None:
        if self.error is None:
            logger.warning("cannot write the log %s: %s", self.path, error)
        self.error = error
        self.dropped += len(data)

    def _append_part(self, part: bytes, half: int) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size and size + len(part) > half:
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        with os.fdopen(os.open(self.path, _APPEND, 0o600), "wb") as file:
            file.write(part)


class StderrLog(BoundedLog):
    """What this process itself says on stderr, which is the file at *path*, bounded like it.

    Also what goes there past us (a traceback, another library) counts, and goes on to the
    new file.  Without a *path* stderr is whatever it is, and nothing is renamed.
    """

    def __init__(self, path: str | os.PathLike[str] | None, limit: int = LOG_LIMIT) -> None:
        super().__init__(path or "stderr", limit)
        self._renames = path is not None

    def _append_part(self, part: bytes, half: int) -> None:
        size = os.fstat(_STDERR).st_size if self._renames else 0
        if size and size + len(part) > half:
            self._begin_anew()
        while part:
            part = part[os.write(_STDERR, part) :]

    def _begin_anew(self) -> None:
        self.path.replace(self.path.with_name(self.path.name + ".1"))
        fd = os.open(self.path, _APPEND, 0o600)
        try:
            for stream in (_STDOUT, _STDERR):
                os.dup2(fd, stream)
        finally:
            os.close(fd)


@asynccontextmanager
async def bounded_log(
    path: str | os.PathLike[str], limit: int = LOG_LIMIT
) -> AsyncIterator[BoundedLog]:
    """A `BoundedLog` whose writer runs for the length of the block."""
    async with writing(BoundedLog(path, limit)) as log:
        yield log


@asynccontextmanager
async def writing(log: BoundedLog) -> AsyncIterator[BoundedLog]:
    """Run the writer of *log* for the length of the block."""
    async with service_nursery() as services:
        services.start_soon(log.run)
        await log._running.wait()  # a block without a checkpoint would end before it began
        yield log
