"""The conversation of two supervisors about a machine that moves: its lines, and nothing of QMP.

JSON objects, one a line, over any stream: a unix socket, or TLS over TCP.  The source asks,
`{"ask": "offer", …}`, and the destination answers, `{"ok": {…}}` or `{"error": {…}}`, one
after the other.  What a peer says is bounded in length, and in time by whoever waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import trio

from qmpkit.errors import Fault, HostLacks, QmpkitError, SpecInvalid
from qmpkit.operations.migration.errors import MigrationFailed

__all__ = ["ANSWER", "PROTOCOL", "NotAsked", "Refused", "Wire", "WireLost", "error_of", "greeted"]

PROTOCOL = 2
"""The conversation's number; both sides must speak the same."""

ANSWER = 30.0
"""Seconds that the other side may take for an answer."""

_LINE = 2 << 20
_CHUNK = 1 << 16


class WireLost(QmpkitError):
    """The other side of a move has gone, is silent, or says what makes no sense: `why`."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)

    def __str__(self) -> str:
        return self.why


class NotAsked(WireLost):
    """The conversation was over before: nothing of the question has been sent."""


class Wire:
    """One conversation over *stream*; a message that is cut off in the middle ends it."""

    def __init__(self, stream: trio.abc.Stream, *, limit: int = _LINE) -> None:
        self._stream = stream
        self._limit = limit
        self._buffer = bytearray()
        self._turn = trio.Lock()
        self._torn = ""

    async def ask(self, what: str, /, *, patience: float = ANSWER, **more: Any) -> dict[str, Any]:
        """What the other side answers; raises WireLost, or what it says was wrong.

        Cancelled, or after *patience* seconds, the conversation is of no more use.
        """
        async with self._turn:
            if self._torn:
                raise NotAsked(self._torn)
            self._torn = f"the conversation was broken off at {what!r}"
            try:
                with trio.fail_after(patience):
                    await self.send({"ask": what, **more})
                    reply = await self.receive()
            except trio.TooSlowError:
                raise WireLost(f"no answer to {what!r} within {patience:g} s") from None
            self._torn = ""
        if isinstance(error := reply.get("error"), dict):
            _raise(error)
        if not isinstance(ok := reply.get("ok"), dict):
            raise WireLost(f"what came is no answer to {what!r}")
        return ok

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one message whole; WireLost too when nobody reads it within `ANSWER` seconds."""
        try:
            with trio.fail_after(ANSWER):
                await self._stream.send_all(json.dumps(message).encode() + b"\n")
        except trio.TooSlowError:
            raise WireLost(f"the other side has read nothing for {ANSWER:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise WireLost(f"the connection is gone: {_reason(error)}") from error

    async def receive(self) -> dict[str, Any]:
        """The next message; WireLost when there is none, or it is none."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > self._limit:
                raise WireLost(f"a message of more than {self._limit} bytes")
            try:
                chunk = await self._stream.receive_some(_CHUNK)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise WireLost(f"the connection is gone: {_reason(error)}") from error
            if not chunk:
                raise WireLost("the other side has closed the connection")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WireLost(f"what came is no JSON: {error}") from error
        if not isinstance(message, dict):
            raise WireLost("what came is no object")
        return message

    async def close(self) -> None:
        """Have the other side know that this is all."""
        self._torn = self._torn or "the conversation is over"
        await trio.aclose_forcefully(self._stream)


async def greeted(wire: Wire, *, on_another_host: bool) -> None:
    """Both speak the same conversation, or WireLost says which."""
    try:
        found = (await wire.ask("hello", protocol=PROTOCOL)).get("protocol")
    except WireLost as lost:  # TLS 1.3 has a client know only now
        hint = "; perhaps it does not know our certificate: it says so there"
        raise WireLost(f"{lost.why}{hint if on_another_host else ''}") from lost
    if found != PROTOCOL:
        raise WireLost(f"the other side speaks conversation {found}, and this one {PROTOCOL}")


def _reason(error: Exception) -> str:
    """What TLS, or the kernel, said."""
    return str(error.__cause__ or error) or "it broke"


def error_of(error: Exception) -> dict[str, Any]:
    """An error in the words of the conversation; of what nobody has foreseen no more than that."""
    match error:
        case SpecInvalid():
            faults = [[fault.path, fault.message, fault.hint] for fault in error.faults]
            return {"kind": "faults", "faults": faults}
        case HostLacks():
            return {"kind": "lacks", "what": error.what, "cure": error.cure}
        case MigrationFailed():  # of which machine, and that it is as it was, says its source
            return {"kind": "failed", "why": error.told}
        case QmpkitError():
            return {"kind": "failed", "why": str(error)}
    return {"kind": "failed", "why": "a bug in qmpkit: see the log of the destination"}


def _raise(plain: Mapping[str, Any]) -> None:
    """Raise what `error_of` has made words of: SpecInvalid, HostLacks, else Refused."""
    if plain.get("kind") == "faults" and isinstance(faults := plain.get("faults"), list):
        raise SpecInvalid([Fault(*map(str, it[:3])) for it in faults if isinstance(it, list)])
    if plain.get("kind") == "lacks":
        raise HostLacks(str(plain.get("what")), str(plain.get("cure", "")))
    raise Refused(str(plain.get("why", "it said nothing more")))


class Refused(QmpkitError):
    """The other side did not do what it was asked, and says `why`."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)

    def __str__(self) -> str:
        return self.why
