"""A place in a console's output, and what can be awaited from there on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from qmpkit.operations.console_buffer import Feed
from qmpkit.operations.errors import OutputLost
from qmpkit.operations.patterns import Match, Pattern, Search

__all__ = ["Chunks", "Reader"]

# How long a regular expression may be put off while output trickles in (see patterns.py).
_SETTLE = 0.005


class Reader:
    """Reads a console independently of other readers; made by `Console.reader`.

    One task at a time: a second one gets trio.BusyResourceError, because two tasks
    that move one place would each miss what the other has found.
    """

    def __init__(self, feed: Feed, start: int) -> None:
        self._feed = feed
        self._place = start
        self._busy = False

    @property
    def place(self) -> int:
        """Offset in the console's whole output up to which this reader has read."""
        return self._place

    async def expect(self, *patterns: Pattern) -> Match:
        """Wait until one of *patterns* has been printed after the last match, and move past it.

        A `str` (as UTF-8) or `bytes` is looked for as it stands; a compiled regular
        expression, of str or bytes, is searched.  The first to be complete in the
        output wins, then their order, however the output was cut into reads: a
        regular expression ends as early as it can, so write what follows it too
        (`re.compile(r"pid (\\d+)\\r")`).  `$`, `\\b` and lookahead at its end see only
        what has been read so far, `^` also matches at the last match's end.  A match
        of a regular expression may be up to 16 KiB long; what stands between two
        marks is better had as `before` of the second.  Lines end with "\\r\\n" on
        most consoles.

        Raises ConsoleEnded (a MachineGone) with the last lines when the machine ends
        first (MachineDied when it crashes), OutputLost when output was dropped before it
        could be searched, ValueError for an empty pattern.  Cancelled, this reader stays
        where it was.
        """
        with self._alone():
            await trio.lowlevel.checkpoint()
            search = Search(patterns, self._place, self._feed.ring.keep)
            while True:
                ended = self._feed.ended
                match = await self._next_look(search)
                if match is not None:
                    self._place = match.end
                    return match
                if ended:
                    raise await self._feed.ended_before(f"{_either(patterns)} was printed")

    async def read(self) -> bytes:
        """The next output, at least one byte; b"" when the console has ended.

        Raises OutputLost when output was dropped before it could be read.
        """
        with self._alone():
            await trio.lowlevel.checkpoint()
            ring = self._feed.ring
            while self._place == ring.end and not self._feed.ended:
                await self._feed.changed()
            self._refuse_gap(ring.base - self._place)
            data = ring.copy(self._place, ring.end)
            self._place = ring.end
            return data

    def stream(self) -> Chunks:
        """`async for chunk in reader.stream()`: what `read` gives, until the console ends."""
        return Chunks(self)

    async def _next_look(self, search: Search) -> Match | None:
        """Look at what is there; without a match, return when something new has come."""
        feed = self._feed
        everything = feed.ended or search.due(feed.ring)
        match = self._look(search, everything)
        if match is not None or feed.ended:
            return match
        if everything:
            await feed.changed()
            return None
        # The bound counts from the first byte put off: a trickle must not postpone it for ever.
        with trio.move_on_after(_SETTLE):
            while not (feed.ended or search.due(feed.ring)):
                await feed.changed()
                if match := self._look(search, everything=False):
                    return match
        return self._look(search, everything=True)

    def _look(self, search: Search, everything: bool) -> Match | None:
        self._refuse_gap(search.unsearched(self._feed.ring))
        return search.look(self._feed.ring, everything=everything)

    def _refuse_gap(self, dropped: int) -> None:
        if dropped > 0:
            feed = self._feed
            self._place = feed.ring.base
            raise OutputLost(feed.name, feed.channel, dropped, feed.ring.keep)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._busy:
            raise trio.BusyResourceError(
                f"another task reads {self._feed.channel} with this reader; "
                "take one of your own with console.reader()"
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


class Chunks:
    """The output of a reader as an asynchronous iterator."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        data = await self._reader.read()
        if not data:
            raise StopAsyncIteration
        return data


def _either(patterns: tuple[Pattern, ...]) -> str:
    shown = [p.pattern if isinstance(p, re.Pattern) else p for p in patterns]
    return " or ".join(map(repr, shown))
