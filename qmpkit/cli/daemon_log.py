"""The daemon's log: every line with its time, bounded, and never in the way of the loop."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from qmpkit.process.logs import BoundedLog, StderrLog, writing

__all__ = ["DAEMON_LOG_LIMIT", "logged"]

DAEMON_LOG_LIMIT = 1 << 20
"""Bytes at which `daemon.log` becomes `daemon.log.1`, in place of the one before."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Queued(logging.Handler):
    """Lines from any thread, on their way to a log that is written elsewhere."""

    def __init__(self, log: BoundedLog) -> None:
        super().__init__()
        self._log = log
        self._token = trio.lowlevel.current_trio_token()

    def emit(self, record: logging.LogRecord) -> None:
        """Never blocks."""
        line = (self.format(record) + "\n").encode(errors="backslashreplace")
        if trio.lowlevel.in_trio_run():
            self._log.write(line)
        else:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._log.write, line)


@asynccontextmanager
async def logged(path: Path | None) -> AsyncIterator[None]:
    """The library's log goes to stderr, which is the file *path* when one is given.

    In the block it is written by a thread: neither a slow disk nor a stopped terminal holds
    up who logs.
    """
    log = logging.getLogger("qmpkit")
    before, formatter = log.handlers, logging.Formatter(_FORMAT)
    log.setLevel(min(log.level, logging.INFO))
    async with writing(StderrLog(path, 2 * DAEMON_LOG_LIMIT)) as lines:
        handler = _Queued(lines)
        handler.setFormatter(formatter)
        log.handlers = [handler]
        try:
            yield
        finally:
            log.handlers = before
