"""FakeQemu: a QMP server in this process, obedient by default and as bad as you ask.

    async with fake_qemu() as fake, open_session(fake.dial(), name="vm") as qmp:
        fake.misbehave("query-status", Late(3), Lost())

It runs on the clock of the test: with trio's autojump clock an hour of silence
takes no time.  What it answers by default stands in `fake_commands`.
"""

from __future__ import annotations

import inspect
import json
import os
import socket
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import trio
import trio.testing

from qmpkit._trio import ServiceNursery
from qmpkit.qmp.wire import Framer, NotAMessage, decode
from qmpkit.testing.fake_commands import CommandTable, Refuse
from qmpkit.testing.fake_link import Link, link_for

__all__ = [
    "Call",
    "Duplicated",
    "FakeQemu",
    "Flooding",
    "Garbage",
    "HalfSent",
    "HangUp",
    "Late",
    "Lost",
    "Misbehaviour",
    "ParseError",
    "Refuse",
    "Silent",
    "fake_qemu",
]

Stream = socket.socket | trio.abc.Stream


@attrs.frozen
class Late:
    """The reply comes *seconds* later; what was asked after it is answered before."""

    seconds: float


@attrs.frozen
class Lost:
    """The command is carried out, and its reply never comes."""


@attrs.frozen
class Duplicated:
    """The reply comes *times* times."""

    times: int = 2


@attrs.frozen
class HalfSent:
    """The first *size* bytes of the reply, then the end of the stream."""

    size: int = 10


@attrs.frozen
class Flooding:
    """*events* events called *name* come before the reply."""

    events: int = 10_000
    name: str = "FLOOD"


@attrs.frozen
class Garbage:
    """These bytes come instead of the reply."""

    data: bytes = b"\x00\x01 this is no JSON \xfe\n"


@attrs.frozen
class ParseError:
    """QEMU's complaint about text it cannot parse: an error without an id."""

    desc: str = "JSON parse error, expecting value"


@attrs.frozen
class HangUp:
    """The stream ends without a reply."""


@attrs.frozen
class Silent:
    """From here on nothing is said, to anybody, about anything."""


Misbehaviour = (
    Late | Lost | Duplicated | HalfSent | Flooding | Garbage | ParseError | HangUp | Silent
)
Handler = Callable[[dict[str, Any]], Any]


@attrs.frozen
class Call:
    """One command as it arrived."""

    command: str
    arguments: dict[str, Any]
    oob: bool
    ident: object
    fds: int
    """How many file descriptors came with it."""


class FakeQemu(CommandTable):
    """One QEMU's monitor (or, with kind "agent", one guest agent); see `fake_qemu`."""

    def __init__(
        self,
        nursery: trio.Nursery | ServiceNursery,
        kind: Literal["qmp", "agent"] = "qmp",
        capabilities: tuple[str, ...] = ("oob",),
        silent: bool = False,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.capabilities = capabilities
        self.silent = silent
        self.calls: list[Call] = []
        self._nursery = nursery
        self._handlers: dict[str, Handler] = {}
        self._plans: defaultdict[str, deque[Misbehaviour]] = defaultdict(deque)
        self._held = trio.Lock()
        self._client: _Client | None = None
        self._news = trio.lowlevel.ParkingLot()

    # --- scripting

    def on(self, command: str, answer: object) -> None:
        """Answer *command* with a value, or with what `answer(arguments)` gives or awaits.

        The function may raise `Refuse(description, class)` for an error reply.
        """
        self._handlers[command] = answer if callable(answer) else lambda _: answer

    def misbehave(self, command: str, *plans: Misbehaviour) -> None:
        """Treat the next calls of *command* so, one after the other."""
        self._plans[command].extend(plans)

    def emit(self, name: str, data: Mapping[str, Any] | None = None) -> None:
        """Send an event now, to the client there is."""
        self.send_raw(_line(_event(name, data)))

    def send_raw(self, data: bytes) -> None:
        """Send these very bytes to the client there is."""
        if self._client is not None and not self.silent:
            self._client.say(data)

    def hang_up(self) -> None:
        """End the client's stream once everything said so far has left."""
        if self._client is not None:
            self._client.say(None)

    async def called(self, command: str, times: int = 1) -> None:
        """Wait until *command* has arrived so often."""
        while sum(call.command == command for call in self.calls) < times:
            await self._news.park()

    # --- clients

    def dial(self, over: Literal["memory", "socket"] = "memory") -> Any:
        """A new client's end of a connection: a trio stream, or a connected socket."""
        if over == "socket":
            ours, theirs = socket.socketpair()
            self._nursery.start_soon(self.serve, ours)
            return theirs
        left, right = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.serve, left)
        return right

    async def serve(self, stream: Stream) -> None:
        """Serve one client to its end; like QEMU, the others wait without a greeting."""
        link = link_for(stream)
        try:
            async with self._held, trio.open_nursery() as nursery:
                self._client = client = _Client(self, link, nursery)
                nursery.start_soon(client.write)
                await client.read()
                nursery.cancel_scope.cancel()
        finally:
            self._client = None
            for fd in link.fds:
                os.close(fd)
            await link.aclose()

    def greeting(self) -> dict[str, Any]:
        """The greeting that a new client gets."""
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "fake"}
        return {"QMP": {"version": version, "capabilities": list(self.capabilities)}}

    async def answer(self, call: Call, fds: list[int]) -> Any:
        """What the command gives; raises `Refuse`."""
        self.calls.append(call)
        self._news.unpark_all()
        handler = self._handlers.get(call.command)
        result = handler(call.arguments) if handler else self.run(call.command, call.arguments, fds)
        return await result if inspect.isawaitable(result) else result

    def plan(self, command: str) -> Misbehaviour | None:
        """How to treat this call."""
        plans = self._plans[command]
        return plans.popleft() if plans else None


class _Client:
    """One connection: commands are carried out in order, replies leave by one writer."""

    def __init__(self, fake: FakeQemu, link: Link, nursery: trio.Nursery) -> None:
        self._fake = fake
        self._link = link
        self._nursery = nursery
        self._negotiated = fake.kind == "agent"
        self._outbox, self._inbox = trio.open_memory_channel[bytes | None](1_000_000)

    def say(self, data: bytes | None) -> None:
        """Queue bytes; None ends the stream when they have left."""
        self._outbox.send_nowait(data)

    async def write(self) -> None:
        async for data in self._inbox:
            if data is None:
                await self._link.aclose()
                return
            try:
                await self._link.send(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the client has gone; its reader notices too

    async def read(self) -> None:
        if self._fake.kind == "qmp" and not self._fake.silent:
            self.say(_line(self._fake.greeting()))
        framer = Framer()
        while data := await self._link.receive():
            for line in framer.feed(data):
                await self._take(line)

    async def _take(self, line: bytes) -> None:
        delimited = line.startswith(b"\xff")
        if delimited and self._fake.kind == "agent":
            self.say(_line(_error("JSON parse error, invalid token", "GenericError")))
        try:
            request = decode(line.lstrip(b"\xff"))
            call = _call(request, len(self._link.fds))
        except (NotAMessage, KeyError) as error:
            self.say(_line(_error(f"JSON parse error, {error}", "GenericError")))
            return
        reply = await self._result(call)
        if "id" in request:
            reply["id"] = request["id"]
        if not self._fake.silent:
            mark = b"\xff" if call.command == "guest-sync-delimited" else b""
            self._send(mark + _line(reply), self._fake.plan(call.command))
        self._fake.settle()

    async def _result(self, call: Call) -> dict[str, Any]:
        if not self._negotiated and call.command != "qmp_capabilities":
            return _error("Expecting capabilities negotiation", "CommandNotFound")
        self._negotiated = True
        try:
            return {"return": await self._fake.answer(call, self._link.fds)}
        except Refuse as refusal:
            return _error(refusal.desc, refusal.error_class)

    def _send(self, reply: bytes, plan: Misbehaviour | None) -> None:
        match plan:
            case None:
                self.say(reply)
            case Late(seconds):
                self._nursery.start_soon(self._say_later, reply, seconds)
            case Lost():
                pass
            case Duplicated(times):
                self.say(reply * times)
            case Flooding(events, name):
                self.say(_line(_event(name, {})) * events + reply)
            case Silent():
                self._fake.silent = True
            case _:
                self._break(reply, plan)

    def _break(self, reply: bytes, plan: HalfSent | Garbage | ParseError | HangUp) -> None:
        match plan:
            case HalfSent(size):
                self.say(reply[:size])
                self.say(None)
            case Garbage(data):
                self.say(data)
            case ParseError(desc):
                self.say(_line(_error(desc, "GenericError")))
            case HangUp():
                self.say(None)

    async def _say_later(self, reply: bytes, seconds: float) -> None:
        await trio.sleep(seconds)
        self.say(reply)


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


def _event(name: str, data: Mapping[str, Any] | None) -> dict[str, Any]:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    stamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
    return {"timestamp": stamp, "event": name} | ({"data": dict(data)} if data else {})


def _error(desc: str, error_class: str) -> dict[str, Any]:
    return {"error": {"class": error_class, "desc": desc}}


def _call(request: dict[str, Any], fds: int) -> Call:
    verb = "exec-oob" if "exec-oob" in request else "execute"
    arguments = request.get("arguments", {})
    return Call(request[verb], arguments, verb == "exec-oob", request.get("id"), fds)


@asynccontextmanager
async def fake_qemu(
    *,
    kind: Literal["qmp", "agent"] = "qmp",
    capabilities: tuple[str, ...] = ("oob",),
    silent: bool = False,
) -> AsyncIterator[FakeQemu]:
    """A `FakeQemu` that serves clients until the block is left.

    *silent*: it takes connections and never says a word.
    """
    async with trio.open_nursery() as nursery:
        fake = FakeQemu(nursery, kind, capabilities, silent)
        try:
            yield fake
        finally:
            fake.close_fds()
            nursery.cancel_scope.cancel()
