"""What has come of moves to this supervisor, for a source that asks later.

Of a machine that is kept its record tells.  Of one that was forgotten since, or whose QEMU
ended as it was told to run, a line here does.  Of any other move nothing was ever run.
"""

from __future__ import annotations

import json
import logging
import secrets
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import trio

from qmpkit.errors import JournalFailed
from qmpkit.operations.migration.wire import Wire
from qmpkit.process.durable import write_durably

__all__ = ["Arrivals", "Coming", "Outcome", "move_named"]

log = logging.getLogger("qmpkit.supervisor")

Outcome = Literal["runs", "ran", "ended", "lost", "discarded"]
"""What has come of a move: its guest "runs" here, or "ran" here and has gone since; its QEMU
"ended" as it was told to run; it is ours, and was "lost", with a part of its memory; or it was
"discarded" before any of that."""

_REMEMBERED = 1000


class Coming(Protocol):
    """A guest whose memory follows it, or may."""

    async def converse(self, wire: Wire) -> None:
        """Answer its source, over a connection that it has made anew."""

    async def settled(self) -> None:
        """Have it come to nothing, unless it was told to run."""


def move_named(ident: str) -> str:
    """As both event logs call it."""
    return f"move {ident[:8]}"


class Arrivals:
    """The outcomes that no record tells of, in the file *path*.

    `who` is what this memory is known by: a supervisor that has lost it is another one, and
    what it does not know of means nothing.  `coming`: those whose memory follows, by their
    moves' numbers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.coming: dict[str, Coming] = {}
        self._who = ""
        self._known: dict[str, str] = {}

    async def load(self) -> None:
        """Read what earlier supervisors have left."""
        try:
            plain = json.loads(await trio.Path(self._path).read_bytes())
            self._who, self._known = str(plain["who"]), dict(plain["known"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("%s cannot be read, which tells of moves: %s", self._path, error)

    async def who(self) -> str:
        """By what it is known, from the first time that it is asked; JournalFailed."""
        if not self._who:
            await self._write(secrets.token_hex(16), self._known)
        return self._who

    def get(self, ident: str) -> str | None:
        """What is remembered of a move."""
        return self._known.get(ident)

    async def put(self, ident: str, outcome: Outcome) -> None:
        """Remember it, safe on disk; JournalFailed when that cannot be."""
        known = {**self._known, ident: outcome}
        newest = dict(islice(known.items(), max(len(known) - _REMEMBERED, 0), None))
        await self._write(await self.who(), newest)

    async def _write(self, who: str, known: dict[str, str]) -> None:
        text = json.dumps({"who": who, "known": known})
        try:
            await trio.to_thread.run_sync(write_durably, self._path, text)
        except OSError as error:
            raise JournalFailed(str(self._path), error.strerror or str(error)) from error
        self._who, self._known = who, known
