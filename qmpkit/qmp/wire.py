"""The wire, purely: bytes to messages, commands to bytes, and whose reply a reply is.

Nothing here touches a socket or a clock, so every property of the framing is
tested on plain byte strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Generic, TypeVar

from qmpkit.spec.options import text_problem

__all__ = ["Framer", "FrameTooLong", "NotAMessage", "Pending", "decode", "encode"]

Waiter = TypeVar("Waiter")

MESSAGE_LIMIT = 256 * 1024 * 1024
"""No message may be longer, in bytes: a peer that never ends its line must not eat our memory."""

ABANDONED_LIMIT = 4096
"""How many given-up commands are remembered, so that their late replies are known as late."""

_encode_value = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_encode_plainly = json.JSONEncoder(ensure_ascii=False).encode
_SUSPECT = re.compile(r"\\u(?:d[89a-f]|fd[de]|fff[ef])")  # surrogates and noncharacters
_decode_value = json.JSONDecoder().raw_decode


class NotAMessage(ValueError):
    """A line that is not one JSON object."""


class FrameTooLong(ValueError):
    """A line grew past the limit without an end."""


class Framer:
    """Cuts a byte stream into lines, in time linear in its length.

    The pieces of an unfinished line are kept apart and joined once, when its end
    arrives; only what is new is searched.
    """

    __slots__ = ("_limit", "_parts", "_size")

    def __init__(self, limit: int = MESSAGE_LIMIT) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def unfinished(self) -> bytes:
        """What has come of a line whose end has not."""
        return b"".join(self._parts)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that *data* completes, without their newline; blank ones are left out.

        Raises `FrameTooLong` when the line unfinished so far has passed the limit;
        the framer is then empty again.
        """
        if self._size > self._limit:
            self.clear()
            raise FrameTooLong(f"a line of more than {self._limit} bytes")
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self._parts:
            self._parts.append(lines[0])
            lines[0] = b"".join(self._parts)
            self.clear()
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
        return [line for line in lines if line and not line.isspace()]

    def clear(self) -> None:
        """Forget the unfinished line."""
        self._parts.clear()
        self._size = 0


def decode(line: bytes) -> dict[str, Any]:
    """One message from one line; raises `NotAMessage` for anything but one JSON object."""
    try:
        text = line.decode().strip()
        message, end = _decode_value(text)
    # RecursionError: the peer nests deeper than the parser goes.
    except (ValueError, RecursionError) as error:
        raise NotAMessage(str(error)) from error
    if end != len(text):
        raise NotAMessage(f"more text after the message, at character {end}")
    if type(message) is not dict:
        raise NotAMessage(f"a JSON {type(message).__name__} instead of an object")
    return message


@lru_cache(maxsize=512)
def _opening(verb: str, command: str) -> bytes:
    # A program uses a few dozen commands thousands of times.
    return f'{{"{verb}":{_encode_value(command)}'.encode()


def encode(
    verb: str, command: str, arguments: Mapping[str, Any] | None, ident: int | None
) -> bytes:
    """The line that asks for *command*; *verb* is `execute` or `exec-oob`.

    Raises TypeError or ValueError for arguments that JSON cannot carry.
    """
    # Older guest agents refuse an id, hence None.
    tail = b"" if ident is None else b',"id":%d' % ident
    if not arguments:
        return b"%b%b}\n" % (_opening(verb, command), tail)
    # The encoder takes a dict for an object, but no other Mapping.
    plain = arguments if isinstance(arguments, dict) else dict(arguments)
    try:
        body = _encode_value(plain)
    except RecursionError as error:
        raise ValueError(f"the arguments of {command} are nested too deep for JSON") from error
    # QEMU does not refuse such a text, it loses its place, and the session with it.
    if _SUSPECT.search(body) and (problem := text_problem(_encode_plainly(plain))):
        raise ValueError(f"the arguments of {command}: {problem}")
    return b'%b,"arguments":%b%b}\n' % (_opening(verb, command), body.encode(), tail)


class Pending(Generic[Waiter]):
    """Who waits for which id, and what became of replies that nobody waits for.

    A reply to a command that was given up is `late`; a second reply to one that
    was answered is `duplicated`; one whose id was never given out is `unknown`.
    """

    __slots__ = ("_abandoned", "_next", "duplicated", "late", "unknown", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, Waiter] = {}
        self._abandoned: dict[int, Callable[[], None]] = {}
        self._next = 1
        self.late = 0
        self.duplicated = 0
        self.unknown = 0

    def new_id(self) -> int:
        """The next id; whoever waits for its reply is put into `waiting` under it."""
        ident = self._next
        self._next = ident + 1
        return ident

    def take(self, ident: object) -> Waiter | None:
        """Who waits for this reply; None, and counted, when nobody does."""
        if type(ident) is int:  # True equals 1 but is no id of ours
            waiter = self.waiting.pop(ident, None)
            if waiter is not None:
                return waiter
        self._count_stray(ident)
        return None

    def take_only(self) -> Waiter | None:
        """Who waits, where replies carry no id and one command is under way at a time."""
        if not self.waiting:
            self.late += 1
            return None
        return self.waiting.popitem()[1]

    def abandon(self, ident: int, settled: Callable[[], None]) -> None:
        """The waiter has given up on a command that has left, wholly or in part.

        *settled* is called once: when the late reply comes, or none can come any more.
        """
        if self.waiting.pop(ident, None) is None:
            settled()
            return
        self._abandoned[ident] = settled
        if len(self._abandoned) > ABANDONED_LIMIT:
            self._abandoned.pop(next(iter(self._abandoned)))()

    def forget(self, ident: int) -> None:
        """The command never left: no reply will come."""
        self.waiting.pop(ident, None)

    def drain(self) -> list[Waiter]:
        """No reply will come any more: everybody who still waits."""
        waiters = list(self.waiting.values())
        self.waiting.clear()
        while self._abandoned:
            self._abandoned.popitem()[1]()
        return waiters

    def _count_stray(self, ident: object) -> None:
        if type(ident) is not int or not 0 < ident < self._next:
            self.unknown += 1
        elif (settled := self._abandoned.pop(ident, None)) is not None:
            self.late += 1
            settled()
        else:
            self.duplicated += 1
