"""The journal: what is declared and known of each machine, safe on disk.

One file a machine, written beside, synced, renamed, and its directory synced: a reader
finds the old text or the new one, whenever the writer was killed.  One thread at a time
writes, and takes all that has come in meanwhile together: the event loop never syncs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from itertools import count, islice
from pathlib import Path

import attrs
import trio

from qmpkit._trio import service_nursery
from qmpkit.errors import JournalFailed, JournalNewer
from qmpkit.process.durable import DRAFT, draft, publish, sync
from qmpkit.supervisor.record import Malformed, NewerSchema, Record

__all__ = ["Journal", "Lost", "Ticket", "read_records", "seen_records"]

FLUSH_GRACE = 10.0
"""Seconds that what has not been written yet may take at the end."""

SOON = 0.1
"""Seconds that an entry may wait for others to be written with it, when nobody waits for it."""

TOGETHER = 32
"""Entries that are written with one another at most: the first are not to wait for hundreds."""

log = logging.getLogger("qmpkit.supervisor")


@attrs.frozen
class Lost:
    """A record that cannot be read: whose it was, why, and where its file is now."""

    machine: str
    why: str
    path: Path


class Ticket:
    """One entry on its way to the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = trio.Event()
        self._error: OSError | None = None

    async def durable(self) -> None:
        """Wait until it is safe on disk; raises JournalFailed when it is not.

        Cancelled, it is written all the same.
        """
        await self._done.wait()
        if self._error is not None:
            why = self._error.strerror or str(self._error)
            raise JournalFailed(str(self._path), why) from self._error

    def _settle(self, error: OSError | None) -> None:
        self._error = error
        self._done.set()


class Journal:
    """Writes records into *directory*, which is there; `run` is its service."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pending: dict[str, Record | None] = {}
        self._tickets: list[tuple[str, Ticket]] = []
        self._wake = trio.Event()
        self._waiting = trio.CancelScope()  # for the next entry, or until those are due
        self._due = math.inf
        self._idle = trio.Event()
        self._idle.set()

    def post(self, record: Record) -> Ticket:
        """Queue *record*, in place of what is queued of its machine.  Never blocks."""
        return self._queue(record.name, record)

    def jot(self, record: Record) -> None:
        """`post` for what nobody waits for: written with the next entry, or after `SOON`."""
        self._pending[record.name] = record
        self._due = self._waiting.deadline = min(self._due, trio.current_time() + SOON)
        self._busy()

    async def put(self, record: Record) -> None:
        """Write *record* and wait until it is safe; JournalFailed when it is not."""
        await self.post(record).durable()

    async def remove(self, name: str) -> None:
        """Forget a machine, safely; JournalFailed when that is not possible."""
        await self._queue(name, None).durable()

    async def run(self) -> None:
        """Write until cancelled, then what is left (`FLUSH_GRACE` at most)."""
        async with service_nursery() as services:
            services.start_soon(self._write, name=f"journal of {self.directory}")
            try:
                await trio.sleep_forever()
            finally:
                self._wake.set()
                with trio.move_on_after(FLUSH_GRACE, shield=True):
                    await self._idle.wait()

    def _queue(self, name: str, record: Record | None) -> Ticket:
        ticket = Ticket(self.directory / _file(name))
        self._pending[name] = record
        self._tickets.append((name, ticket))
        self._busy()
        self._wake.set()
        return ticket

    def _busy(self) -> None:
        if self._idle.is_set():
            self._idle = trio.Event()

    async def _write(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._due) as self._waiting:
                await self._wake.wait()
            self._wake, self._due = trio.Event(), math.inf
            batch = dict(islice(self._pending.items(), TOGETHER))
            for name in batch:
                del self._pending[name]
            if self._pending:
                self._wake.set()
            tickets = [it for it in self._tickets if it[0] in batch]
            self._tickets = [it for it in self._tickets if it[0] not in batch]
            # A limiter of its own: a slow disk must not take the threads of everybody else.
            errors = await trio.to_thread.run_sync(
                _commit_records, self.directory, batch, limiter=trio.CapacityLimiter(1)
            )
            for name, ticket in tickets:
                ticket._settle(errors.get(name))
            if not self._pending:
                self._idle.set()


def _commit_records(directory: Path, batch: Mapping[str, Record | None]) -> dict[str, OSError]:
    """`commit`; the texts are made here, off the loop, and only of what is written at last."""
    texts = {name: None if it is None else it.to_json() for name, it in batch.items()}
    return commit(directory, texts)


def commit(directory: Path, batch: Mapping[str, str | None]) -> dict[str, OSError]:
    """Write a batch of texts (None: remove) and return what failed.  Blocking.

    All that could be written is safe when this returns.
    """
    errors: dict[str, OSError] = {}
    for name, text in batch.items():
        try:
            draft(directory / (_file(name) + DRAFT), text)
        except OSError as error:
            errors[name] = error
    for name, text in batch.items():
        if name not in errors:
            try:
                publish(directory / _file(name), text)
            except OSError as error:
                errors[name] = error
    try:
        sync(directory)
    except OSError as error:
        return dict.fromkeys(batch, error)
    return errors


def _file(name: str) -> str:
    return f"{name}.json"


def seen_records(directory: Path) -> tuple[list[Record], list[Lost]]:
    """Every record there, by name, and the files that are none.  Blocking; changes nothing.

    Raises `JournalNewer` when a later qmpkit has written one.
    """
    records: list[Record] = []
    lost: list[Lost] = []
    for path in sorted(directory.glob("*.json")):
        try:
            records.append(_read(path))
        except NewerSchema as newer:
            raise JournalNewer(str(path), newer.schema) from None
        except FileNotFoundError:
            continue  # it was forgotten while we looked
        except (Malformed, OSError) as error:
            lost.append(Lost(path.name.removesuffix(".json"), str(error), path))
    return records, lost


def read_records(directory: Path) -> tuple[list[Record], list[Lost]]:
    """Every record there, by name, and those that were lost.  Blocking.

    A file that is no record is set aside as `<name>.json.corrupt-<n>`.  Raises
    `JournalNewer`, having changed nothing, when a later qmpkit has written one.
    """
    records, lost = seen_records(directory)
    for path in directory.glob(f"*{DRAFT}"):  # of a writer that was killed: the one before stands
        with suppress(OSError):
            path.unlink()
    return records, [_set_aside(loss) for loss in lost]


def _read(path: Path) -> Record:
    record = Record.from_json(path.read_bytes())
    if _file(record.name) != path.name:
        raise Malformed(f"it is the record of {record.name!r}")
    return record


def _set_aside(lost: Lost) -> Lost:
    path = lost.path
    names = (path.with_name(f"{path.name}.corrupt-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
    except OSError as error:
        log.warning("cannot set %s aside: %s", path, error)
        return lost
    return attrs.evolve(lost, path=aside)
