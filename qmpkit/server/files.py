"""Files of a guest, streamed in both directions: no more of one is here than a few parts."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from qmpkit._trio import service_nursery
from qmpkit.errors import QmpkitError
from qmpkit.operations.agent import Agent, GuestReader
from qmpkit.server.answers import Refused
from qmpkit.server.presence import gone

__all__ = ["SIZE_HEADER", "GuestFile", "put_file"]

log = logging.getLogger("qmpkit.server")

SIZE_HEADER = "qmpkit-size"
"""What a file's size was when it was opened; absent for what has none."""

_PART = 256 << 10  # bytes that go to the agent at once


class GuestFile:
    """The answer that is a file of a guest.

    What fails before its first part is an error like any other.  Later the answer breaks
    off, which HTTP tells the client.
    """

    def __init__(self, agent: Agent, path: str) -> None:
        self._agent = agent
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with trio.CancelScope() as reading:
            async with service_nursery() as services:
                services.start_soon(gone, receive, reading)
                await self._answer(send)

    async def _answer(self, send: Send) -> None:
        begun = False
        try:
            async with self._agent.reading(self._path) as file:
                headers = await _headers(file)
                part = await file.read()
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                while part:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    part = await file.read()
        except QmpkitError as error:
            if not begun:
                raise
            log.warning("reading %s broke off: %s", self._path, error)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _headers(file: GuestReader) -> list[tuple[bytes, bytes]]:
    size = await file.size()
    told = [] if size is None else [(SIZE_HEADER.encode(), str(size).encode())]
    return [(b"content-type", b"application/octet-stream"), *told]


async def put_file(agent: Agent, path: str, request: Request) -> int:
    """Write the body of *request* into a file; how many bytes it has.

    Raises Refused for a client that has gone.
    """
    size = 0
    async with agent.writing(path) as file:
        async for part in _parts(request):
            await file.write(part)
            size += len(part)
    return size


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a message to the agent.

    However long the next one takes: the pipe that is copied may pause, and the guest's file is
    truncated already.  That a client has vanished is seen on its socket.
    """
    pending = bytearray()
    try:
        async for part in request.stream():
            pending += part
            if len(pending) >= _PART:
                yield bytes(pending)
                pending.clear()
    except ClientDisconnect:
        raise Refused("the client has gone", 400) from None
    if pending:
        yield bytes(pending)
