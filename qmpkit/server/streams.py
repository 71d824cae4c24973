"""Answers that go on: events, a job's steps, logs, and a console in both directions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qmpkit.errors import MachineDied, MachineGone
from qmpkit.operations.console import Console
from qmpkit.operations.errors import ConsoleEnded, OutputLost
from qmpkit.qmp.errors import EventsLost
from qmpkit.server.jobs import Job
from qmpkit.server.views import happening_view
from qmpkit.supervisor.events import Happening
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["BEAT", "ConsoleResponse", "event_stream", "job_stream", "log_stream", "tail_of_file"]

_SSE = {"cache-control": "no-store"}
BEAT = 15.0
"""Seconds after which a silent stream says that it lives: so one that nobody reads is noticed."""

_ALIVE = b": still here\n\n"
_TAIL_LIMIT = 4 << 20


def _sse(event: str, data: object, ident: int | None = None) -> bytes:
    head = "" if ident is None else f"id: {ident}\n"
    return f"{head}event: {event}\ndata: {json.dumps(data)}\n\n".encode()


def event_stream(
    lab: Supervisor, machine: str | None, since: int | None, *, follow: bool, beat: float
) -> StreamingResponse:
    """Happenings as server-sent events, of one machine or of all; a sign of life each *beat*."""
    start = lab.last_event if since is None else since  # the answer has begun with this request
    told = _events(lab, machine, start, beat) if follow else _past(lab, machine, start)
    return StreamingResponse(told, 200, _SSE, "text/event-stream")


def _told(happening: Happening, machine: str | None) -> bytes:
    if machine not in (None, happening.machine):
        return b""
    return _sse("happening", happening_view(happening), happening.sequence)


async def _events(
    lab: Supervisor, machine: str | None, since: int, every: float
) -> AsyncIterator[bytes]:
    with lab.subscribe(since=since) as happenings:
        while True:
            line = _ALIVE
            try:
                with trio.move_on_after(every):
                    line = _told(await anext(happenings), machine)
            except EventsLost as lost:
                line = _sse("lost", {"message": str(lost)})
            except StopAsyncIteration:
                return
            if line:
                yield line


async def _past(lab: Supervisor, machine: str | None, since: int) -> AsyncIterator[bytes]:
    with lab.subscribe(since=since) as happenings:
        while True:
            try:
                happening = await happenings.past()
            except EventsLost as lost:
                yield _sse("lost", {"message": str(lost)})
                continue
            if happening is None:
                return
            if line := _told(happening, machine):
                yield line


def job_stream(job: Job, beat: float) -> StreamingResponse:
    """A job's steps from the first, then its end; a sign of life each *beat*."""

    async def told() -> AsyncIterator[bytes]:
        async for step in job.watch(beat):
            yield _ALIVE if step is None else _sse("progress", step)
        yield _sse("end", job.to_dict())

    return StreamingResponse(told(), 200, _SSE, "text/event-stream")


def tail_of_file(path: Path, lines: int | None) -> bytes:
    """The last *lines* of a log (None: all that is not too much).  Blocking."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_LIMIT))
            text = file.read(_TAIL_LIMIT)
    except FileNotFoundError:
        return b""
    if lines is None:
        return text
    return b"".join(text.splitlines(keepends=True)[-lines:]) if lines else b""


def log_stream(start: bytes, console: Console | None) -> StreamingResponse:
    """*start*, and then what *console* says until its machine ends."""
    chunks = None if console is None else console.stream()  # from here on nothing is missed

    async def said() -> AsyncIterator[bytes]:
        yield start
        if chunks is not None:
            try:
                async for chunk in chunks:
                    yield chunk
            except (ConsoleEnded, MachineGone, MachineDied):
                return
            except OutputLost:
                yield b"\n(some output was lost: it came faster than it was read)\n"

    return StreamingResponse(said(), 200, _SSE, "text/plain")


class ConsoleResponse:
    """A terminal on a console: the request's body are keystrokes, the answer's what it says.

    Both at the same time, until the client ends its body or the machine ends.
    """

    def __init__(self, console: Console, backlog: int = 4096) -> None:
        self._console = console
        self._backlog = backlog

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _say(send, self._console.output_bytes[-self._backlog :])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._typed, receive, nursery.cancel_scope)
            try:
                async for chunk in self._console.stream():
                    await _say(send, chunk)
            except (ConsoleEnded, OutputLost, MachineGone, MachineDied):
                nursery.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _typed(self, receive: Receive, scope: trio.CancelScope) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            if message.get("body"):
                try:
                    await self._console.send(message["body"])
                except (ConsoleEnded, MachineGone, MachineDied):
                    break
            if not message.get("more_body"):
                break
        scope.cancel()


async def _say(send: Send, chunk: bytes) -> None:
    message: dict[str, Any] = {"type": "http.response.body", "body": chunk, "more_body": True}
    if chunk:
        await send(message)
