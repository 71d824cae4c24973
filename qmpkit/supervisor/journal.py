"""The journal: what is declared and known of each machine, safe on disk.

One file that is only added to, an entry a change: a reader finds the old entry or the new
one, whenever the writer was killed.  One thread at a time writes, and takes all that has
come in meanwhile together: the event loop never syncs, and many share one sync.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count, islice
from pathlib import Path

import attrs
import trio

from qmpkit._trio import in_thread, service_nursery
from qmpkit.errors import HostLacks, JournalFailed, JournalNewer
from qmpkit.process.durable import DRAFT, sync
from qmpkit.process.entries import add, compact, entries_in, mend
from qmpkit.spec.names import machine_name_problem
from qmpkit.supervisor.record import Malformed, NewerSchema, Record

__all__ = ["Journal", "Lost", "Ticket", "read_records", "seen_records"]

FLUSH_GRACE = 10.0
"""Seconds that what has not been written yet may take at the end."""

GATHER = 0.01
"""Seconds that an entry may wait for others to be written with it, until somebody waits for it."""

SOON = 0.1
"""The same for one that nobody will wait for."""

TOGETHER = 32
"""Entries that are written with one another at most: the first are not to wait for hundreds."""

SPARE = 1 << 20
"""Bytes of entries that count no longer which the file may have, beside as many as do count."""

_ENDED = "its supervisor has ended"

log = logging.getLogger("qmpkit.supervisor")


@attrs.frozen
class Lost:
    """A record that cannot be read: whose it was, why, and where its text is now."""

    machine: str
    why: str
    path: Path


class Ticket:
    """One entry on its way to the disk; `hurry` has it written at once, when it is needed soon."""

    def __init__(self, path: Path, hurry: Callable[[], None]) -> None:
        self._path = path
        self.hurry = hurry
        self._done = trio.Event()
        self._error: OSError | None = None

    async def durable(self) -> None:
        """Wait until it is safe on disk; raises JournalFailed when it is not.

        Cancelled, it is written all the same.
        """
        self.hurry()
        await self._done.wait()
        if self._error is not None:
            why = self._error.strerror or str(self._error)
            raise JournalFailed(str(self._path), why) from self._error

    def _settle(self, error: OSError | None) -> None:
        self._error = error
        self._done.set()


class Journal:
    """Writes records into the file *path*, whose directory is there; `run` is its service."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._limit = SPARE
        self._has_ended = False
        self._is_named = False  # safely: whoever has written it before may have died before that
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
        """`post` for what nobody waits for."""
        self._add_to_batch(record.name, record, SOON)

    async def put(self, record: Record) -> None:
        """Write *record* and wait until it is safe; JournalFailed when it is not."""
        await self.post(record).durable()

    async def remove(self, name: str) -> None:
        """Forget a machine, safely; JournalFailed when that is not possible."""
        await self._queue(name, None).durable()

    async def run(self) -> None:
        """Write until cancelled, then what is left (`FLUSH_GRACE` at most)."""
        async with service_nursery() as services:
            services.start_soon(self._write, name=f"journal {self.path}")
            try:
                await trio.sleep_forever()
            finally:
                self._wake.set()
                with trio.move_on_after(FLUSH_GRACE, shield=True):
                    await self._idle.wait()
                self._end()

    def _end(self) -> None:
        """Nothing is written any more, and nobody is to wait for it."""
        self._has_ended = True
        for _, ticket in self._tickets:
            ticket._settle(OSError(errno.ESHUTDOWN, _ENDED))

    def _queue(self, name: str, record: Record | None) -> Ticket:
        ticket = Ticket(self.path, partial(self._hurry, name))
        if self._has_ended:
            ticket._settle(OSError(errno.ESHUTDOWN, _ENDED))
            return ticket
        self._tickets.append((name, ticket))
        self._add_to_batch(name, record, GATHER)
        return ticket

    def _add_to_batch(self, name: str, record: Record | None, within: float) -> None:
        self._pending[name] = record
        self._due = self._waiting.deadline = min(self._due, trio.current_time() + within)
        if self._idle.is_set():
            self._idle = trio.Event()

    def _hurry(self, name: str) -> None:
        if name in self._pending:  # and not being written
            self._wake.set()

    async def _write(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._due) as self._waiting:
                await self._wake.wait()
            self._wake, self._due = trio.Event(), math.inf
            batch = dict(islice(self._pending.items(), TOGETHER))
            if not batch:  # it was woken because the end has come
                continue
            for name in batch:
                del self._pending[name]
            if self._pending:
                self._wake.set()
            tickets = [it for it in self._tickets if it[0] in batch]
            self._tickets = [it for it in self._tickets if it[0] not in batch]
            try:
                error = await in_thread(partial(self._add, batch))
            except OSError as failed:
                error = failed
            for _, ticket in tickets:
                ticket._settle(error)
            if not self._pending:
                self._idle.set()

    def _add(self, batch: Mapping[str, Record | None]) -> OSError | None:
        """Blocking; the texts are made here, off the loop, and only of what is written at last."""
        texts = {name: None if it is None else it.to_json() for name, it in batch.items()}
        try:
            if not self._is_named:  # else a loss of power could bring the old file back
                sync(self.path.parent)
                self._is_named = True
            size = add(self.path, texts)
        except OSError as error:
            return error
        if size > self._limit:
            self._is_named = False
            with suppress(OSError):  # it only takes more room than it need
                size = compact(self.path)
                self._is_named = True
            self._limit = 2 * size + SPARE
        return None


def seen_records(path: Path) -> tuple[list[Record], list[Lost]]:
    """Every record there, by name, and the entries that are none.  Blocking; changes nothing.

    Raises `JournalNewer` when a later qmpkit has written one, OSError.
    """
    records: list[Record] = []
    lost: list[Lost] = []
    for name, text in sorted(entries_in(path).items()):
        try:
            records.append(_read(name, text))
        except NewerSchema as newer:
            raise JournalNewer(str(path), newer.schema) from None
        except Malformed as error:
            lost.append(Lost(name, str(error), path))
    return records, lost


def read_records(path: Path) -> tuple[list[Record], list[Lost]]:
    """Every record there, by name, and those that were lost.  Blocking.

    An entry that is no record is set aside as `<name>.corrupt-<n>`.  Raises `JournalNewer`,
    having changed nothing, when a later qmpkit has written one, `HostLacks` when the file
    cannot be read.
    """
    try:
        records, lost = seen_records(path)
        mend(path)
        path.with_name(path.name + DRAFT).unlink(missing_ok=True)  # of a writer that was killed
    except OSError as error:
        what = f"cannot read the journal {path}: {error.strerror}"
        raise HostLacks(what, "make it readable and writable, or put it aside") from error
    return records, [_set_aside(loss) for loss in lost]


def _read(name: str, text: bytes) -> Record:
    record = Record.from_json(text)
    if record.name != name:
        raise Malformed(f"it is the record of {record.name!r}")
    return record


def _set_aside(lost: Lost) -> Lost:
    path, name = lost.path, lost.machine
    whose = "unknown" if machine_name_problem(name) else name
    names = (path.with_name(f"{whose}.corrupt-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    try:
        aside.write_bytes(entries_in(path)[name])
        add(path, {name: None})
    except OSError as error:
        log.warning("cannot set aside what %s has of %r: %s", path, name, error)
        return lost
    return attrs.evolve(lost, path=aside)
