"""Search of a growing text for the first of several patterns.  Pure: no I/O, no trio.

The result is that of a search repeated after every single byte, so it does not
depend on how the stream was cut into reads: the pattern whose match is complete
first wins, then the order of the patterns.  A regular expression therefore ends
as early as it can: `\\d+` matches one digit, `\\d+\\r` the whole number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import attrs

from qmpkit.operations.console_buffer import Ring

__all__ = ["SPAN", "Match", "Pattern", "Search", "clean"]

Pattern: TypeAlias = str | bytes | re.Pattern[str] | re.Pattern[bytes]
AnyMatch: TypeAlias = re.Match[str] | re.Match[bytes]

# How long a match of a regular expression may be.  `re` cannot say from where on a match may
# still begin, so with every read this much is searched again: the price of a bounded search.
SPAN = 16 * 1024
# A long backlog is searched in pieces: when one holds a match it is searched some 16 times
# more for the match's earliest form, and that should not take a whole megabyte each time.
_PIECE = 4 * SPAN
# Text before the searched part that lookbehind, `\b` and `^` may see.
_CONTEXT = 64
# A regular expression is tried at once when little is to be searched or much is new;
# otherwise it waits until the stream has settled.  Byte-wise output would else search
# SPAN bytes for every single one.
_LITTLE = 1024
_MUCH_IS = 1 / 16


@attrs.frozen
class Match:
    """What `expect` found.

    `index` tells which of the patterns, `pattern` is that pattern.  `raw_before` is
    the output between the reader's last place and the match, `raw` the match itself,
    `end` the offset after it in the console's whole output.  `dropped` counts
    bytes missing at the head of `raw_before` because they are no longer kept.
    `regex` is the `re` match (None for a plain text); its offsets count from an
    arbitrary place, so use its groups.
    """

    index: int
    pattern: Pattern
    raw_before: bytes
    raw: bytes
    end: int
    dropped: int = 0
    regex: AnyMatch | None = attrs.field(default=None, eq=False)

    @property
    def before(self) -> str:
        """`raw_before` as text; bytes that are no UTF-8 are replaced."""
        return self.raw_before.decode("utf-8", "replace")

    @property
    def text(self) -> str:
        """The matched output as text."""
        return self.raw.decode("utf-8", "replace")

    def group(self, which: int | str = 0) -> str:
        """A group of the regular expression as text; "" when it took no part.

        Raises IndexError for a group that does not exist (a plain text has only 0).
        """
        if self.regex is None:
            if which != 0:
                raise IndexError("a plain text has no groups")
            return self.text
        return clean(self.regex.group(which))


def clean(text: str | bytes | None) -> str:
    """Text without the escapes by which undecodable bytes are carried through a search."""
    if text is None:
        return ""
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return raw.decode("utf-8", "replace")


@attrs.frozen
class _Hit:
    start: int
    end: int
    complete: int  # where the match was complete: after `end` when it looked ahead
    regex: AnyMatch | None = None


class _Needle(Protocol):
    floor: int  # before this offset no match can begin any more

    def first(self, ring: Ring, limit: int) -> _Hit | None: ...

    def due(self, ring: Ring) -> bool: ...


class _Literal:
    def __init__(self, needle: bytes, start: int) -> None:
        self._needle = needle
        self.floor = start

    def first(self, ring: Ring, limit: int) -> _Hit | None:
        at = ring.find(self._needle, self.floor, limit)
        if at is None:
            self.floor = max(self.floor, limit - len(self._needle) + 1)
            return None
        end = at + len(self._needle)
        return _Hit(at, end, end)

    def due(self, ring: Ring) -> bool:
        return True


class _Regex:
    """A regular expression over bytes; `_TextRegex` does the same over decoded text."""

    def __init__(self, pattern: re.Pattern[bytes], start: int) -> None:
        self._pattern = pattern
        self._start = start
        self._seen = start  # no match is complete before this offset
        self.floor = start

    def due(self, ring: Ring) -> bool:
        region = ring.end - self.floor
        return region <= _LITTLE or ring.end - self._seen >= region * _MUCH_IS

    def first(self, ring: Ring, limit: int) -> _Hit | None:
        for end in (*range(self._seen + _PIECE, limit, _PIECE), limit):
            if end > self._seen:
                origin = max(self._start, self.floor - _CONTEXT, ring.base)
                if found := self._search(ring, origin, end):
                    return found
                self.floor = max(self._start, self._seen - SPAN)
        return None

    def _search(self, ring: Ring, origin: int, limit: int) -> _Hit | None:
        text = ring.copy(origin, limit)
        found = _earliest(self._pattern, text, self.floor - origin, self._seen - origin)
        if found is None:
            self._seen = limit
            return None
        match, complete = found
        return _Hit(origin + match.start(), origin + match.end(), origin + complete, match)


class _TextRegex(_Regex):
    def __init__(self, pattern: re.Pattern[str], start: int) -> None:
        self._text_pattern = pattern
        super().__init__(re.compile(b"(?!)"), start)

    def _search(self, ring: Ring, origin: int, limit: int) -> _Hit | None:
        raw = ring.copy(origin, limit)
        # A character whose last bytes have not come yet waits for them.
        raw = raw[: len(raw) - _unfinished(raw)]
        text = _decode(raw)
        floor = len(_decode(raw[: self.floor - origin]))
        seen = len(_decode(raw[: self._seen - origin]))
        found = _earliest(self._text_pattern, text, floor, seen)
        if found is None:
            self._seen = max(self._seen, origin + len(raw))
            return None
        match, complete = found
        start, end, done = (
            origin + len(text[:at].encode("utf-8", "surrogateescape"))
            for at in (match.start(), match.end(), complete)
        )
        return _Hit(start, end, done, match)


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _unfinished(raw: bytes) -> int:
    """How many bytes at the end are the beginning of a UTF-8 character."""
    for back in range(1, min(3, len(raw)) + 1):
        byte = raw[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < length else 0
        if byte < 0x80:
            break
    return 0


def _earliest(
    pattern: re.Pattern[bytes] | re.Pattern[str], text: bytes | str, start: int, seen: int
) -> tuple[AnyMatch, int] | None:
    """The match that stands when *text* first holds one, and the length it needs for that.

    Halving is right because more text never takes away a match, but for
    expressions that ask what follows (`$`, `\\b`, lookahead).
    """
    search = pattern.search
    found: AnyMatch | None = search(text, start)  # type: ignore[arg-type]
    if found is None:
        return None
    high = found.end()
    if search(text, start, high) is None:  # type: ignore[arg-type]
        high = len(text)  # it looked ahead, beyond its own end
    low = seen
    while high - low > 1:
        middle = (low + high) // 2
        earlier: AnyMatch | None = search(text, start, middle)  # type: ignore[arg-type]
        if earlier is None:
            low = middle
        else:
            high, found = middle, earlier
    return found, high


class Search:
    """One search for several patterns, from *start* on, in a ring that grows meanwhile.

    Raises ValueError for patterns that cannot be searched for.
    """

    def __init__(self, patterns: Sequence[Pattern], start: int, keep: int) -> None:
        if not patterns:
            raise ValueError("expect needs at least one pattern")
        self._patterns = tuple(patterns)
        self._start = start
        self._needles = [_needle(pattern, start, keep) for pattern in patterns]

    def unsearched(self, ring: Ring) -> int:
        """How many bytes were dropped from *ring* before they were searched."""
        return max(0, ring.base - min(needle.floor for needle in self._needles))

    def due(self, ring: Ring) -> bool:
        """False when a look at everything is better put off until more has come."""
        return all(needle.due(ring) for needle in self._needles)

    def look(self, ring: Ring, *, everything: bool = True) -> Match | None:
        """Search what is new; without *everything* only for plain texts, which is cheap."""
        best: tuple[int, _Hit] | None = None
        limit = ring.end
        for index, needle in self._in_order_of_cost():
            if best is None and not everything and not isinstance(needle, _Literal):
                continue
            hit = needle.first(ring, limit)
            if hit and (best is None or (hit.complete, index) < (best[1].complete, best[0])):
                best = index, hit
                limit = hit.complete
        return None if best is None else self._match(ring, *best)

    def _in_order_of_cost(self) -> list[tuple[int, _Needle]]:
        # A plain text that was found bounds what the regular expressions have to search.
        return sorted(enumerate(self._needles), key=lambda pair: isinstance(pair[1], _Regex))

    def _match(self, ring: Ring, index: int, hit: _Hit) -> Match:
        return Match(
            index,
            self._patterns[index],
            ring.copy(self._start, hit.start),
            ring.copy(hit.start, hit.end),
            hit.end,
            max(0, ring.base - self._start),
            hit.regex,
        )


def _needle(pattern: Pattern, start: int, keep: int) -> _Needle:
    if isinstance(pattern, str | bytes):
        raw = pattern.encode() if isinstance(pattern, str) else pattern
        if not 0 < len(raw) <= keep // 2:
            raise ValueError(f"a text to expect has 1 to {keep // 2} bytes, this one {len(raw)}")
        return _Literal(raw, start)
    if not isinstance(pattern, re.Pattern):
        raise TypeError(f"expect takes str, bytes and compiled patterns, not {pattern!r}")
    empty = pattern.search(b"" if isinstance(pattern.pattern, bytes) else "")  # type: ignore[arg-type]
    if empty is not None:
        raise ValueError(f"{pattern.pattern!r} matches the empty text, so it would match at once")
    if isinstance(pattern.pattern, str):
        return _TextRegex(pattern, start)
    return _Regex(pattern, start)
