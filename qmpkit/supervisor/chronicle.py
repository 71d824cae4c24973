"""The event log on disk: a line a happening, in files that are few and bounded.

`<state>/events/<number of its first happening>.jsonl`.  Lines are appended by a thread as
they come and are not synced: they tell what was, and nothing is decided by them.  After a
SIGKILL the last ones may be missing, so the next supervisor's numbers begin past a gap that
no number of the one before can be in.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path

import attrs
import trio

from qmpkit._trio import in_thread
from qmpkit.supervisor.happening import Happening

__all__ = ["Chronicle"]

log = logging.getLogger("qmpkit.supervisor")

FILE_LIMIT = 4 << 20
"""Bytes after which a new file is begun."""

FILES_KEPT = 8

_TOGETHER = 0.1  # seconds for which those that come are written with the first one
_GAP = 100_000
_FLUSH_GRACE = 5.0
_BACKLOG_LIMIT = 200_000  # happenings that wait for a disk that does not take them


class Chronicle:
    """Writes happenings into *folder* and reads them back; `run` is its service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: list[Happening] = []
        self._news = trio.Event()
        self._failing = False

    def open(self) -> int:
        """Make the folder; the number that the next happening gets.  Blocking.

        A folder that cannot be made is told of when something is to be written.
        """
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, exist_ok=True)
        files = _files(self.folder)
        last = max((it.sequence for it in _read(files[-1])), default=files[-1][0]) if files else -1
        return 0 if last < 0 else (last // _GAP + 1) * _GAP

    def write(self, happening: Happening) -> None:
        """Queue one; never blocks."""
        if len(self._pending) < _BACKLOG_LIMIT:
            self._pending.append(happening)
        self._news.set()

    async def run(self) -> None:
        """Write until cancelled, then what is left."""
        try:
            while True:
                await self._news.wait()
                await trio.sleep(_TOGETHER)
                await self._flush()
        finally:
            with trio.move_on_after(_FLUSH_GRACE, shield=True):
                await self._flush()

    async def _flush(self) -> None:
        self._news = trio.Event()
        batch, self._pending = self._pending, []
        if batch:
            try:
                error = await in_thread(partial(_append, self.folder, batch))
            except trio.Cancelled:  # before the thread began: it is for the last flush
                self._pending = batch + self._pending
                raise
            except OSError as failed:  # nor did it here: it is for the next
                error, self._pending = failed, batch + self._pending
            if error is not None and not self._failing:
                log.warning("the event log in %s is not written: %s", self.folder, error)
            self._failing = error is not None

    async def oldest(self) -> int:
        """The number of the oldest that is still there, 0 when there is none."""
        files = await trio.to_thread.run_sync(_files, self.folder)
        return files[0][0] if files else 0

    async def before(self, moment: float) -> int:
        """The number of the last that happened before *moment*; -1 when none is there."""
        return await trio.to_thread.run_sync(_before, self.folder, moment)

    async def pages(self, since: int, before: int) -> Sequence[Happening] | None:
        """A page of those after *since* and before *before*; empty: there are no more.

        None when some of them are there no longer.
        """
        return await trio.to_thread.run_sync(_page, self.folder, since, before)


def _files(folder: Path) -> list[tuple[int, Path]]:
    """The files with the numbers of their first happenings, the oldest first."""
    found = [(int(path.stem), path) for path in folder.glob("*.jsonl") if path.stem.isdecimal()]
    return sorted(found)


def _append(folder: Path, batch: Sequence[Happening]) -> OSError | None:
    """Append a batch, and remove the oldest files.  Blocking."""
    fields = [field.name for field in attrs.fields(Happening)]
    plain = ({name: getattr(it, name) for name in fields} for it in batch)  # asdict takes thrice
    text = "".join(f"{json.dumps(it)}\n" for it in plain).encode()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)  # whoever needs space may have removed it
        files = _files(folder)
        whole = not files or files[-1][1].stat().st_size >= FILE_LIMIT
        path = folder / f"{batch[0].sequence}.jsonl" if whole else files[-1][1]
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "ab") as file:
            size = file.tell()
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
            file.write(b"\n" + text if torn else text)
        for _, old in files[: max(0, len(files) + whole - FILES_KEPT)]:
            old.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def _read(file: tuple[int, Path]) -> Iterator[Happening]:
    """The happenings in a file; a line that was torn by a SIGKILL or a full disk is none."""
    try:
        lines = file[1].read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield Happening(**json.loads(line))
        except (ValueError, TypeError):
            continue


def _before(folder: Path, moment: float) -> int:
    for file in reversed(_files(folder)):
        earlier = [it.sequence for it in takewhile(lambda it: it.time < moment, _read(file))]
        if earlier:
            return earlier[-1]
    return -1


def _page(folder: Path, since: int, before: int) -> Sequence[Happening] | None:
    files = _files(folder)
    if files and files[0][0] > max(since + 1, 0) and files[0][0] < before:
        return None
    for number, file in enumerate(files):
        following = files[number + 1][0] if number + 1 < len(files) else None
        if following is not None and following <= since + 1:
            continue
        if found := [it for it in _read(file) if since < it.sequence < before]:
            return found
    return ()
