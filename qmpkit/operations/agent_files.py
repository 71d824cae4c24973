"""Files of the guest, read and written through its agent."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from qmpkit.operations.agent_link import AgentLink
from qmpkit.operations.errors import AgentRefused

__all__ = ["GuestReader", "GuestWriter", "read_file", "reading", "write_file", "writing"]

# Bytes of a file in one message: the agent answers nobody else meanwhile.
_CHUNK = 256 * 1024


class GuestReader:
    """A file of the guest that is being read; made by `Agent.reading`."""

    def __init__(self, link: AgentLink, handle: int, asked: str) -> None:
        self._link = link
        self._handle = handle
        self._asked = asked
        self._ended = False

    async def size(self) -> int | None:
        """Its bytes at this moment; None for what has no end.  To be asked before it is read."""
        try:
            size = await self._seek(0, "end")
            await self._seek(0, "set")
        except AgentRefused:  # a pipe, or an agent that may not
            return None
        return size

    async def read(self) -> bytes:
        """The next part of it; empty at its end."""
        while not self._ended:
            request = {"handle": self._handle, "count": _CHUNK}
            reply = await self._link.execute("guest-file-read", request, asked=self._asked)
            with self._link.understood("guest-file-read"):
                data = base64.b64decode(reply["buf-b64"])
                self._ended = bool(reply["eof"]) or reply["count"] == 0
            if data:
                return data
        return b""

    async def _seek(self, offset: int, whence: str) -> int:
        request = {"handle": self._handle, "offset": offset, "whence": whence}
        reply = await self._link.execute("guest-file-seek", request, asked=self._asked)
        with self._link.understood("guest-file-seek"):
            return int(reply["position"])


class GuestWriter:
    """A file of the guest that is being written; made by `Agent.writing`."""

    def __init__(self, link: AgentLink, handle: int, asked: str) -> None:
        self._link = link
        self._handle = handle
        self._asked = asked

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write the whole of *data*."""
        rest = memoryview(data)
        while rest:
            chunk = base64.b64encode(rest[:_CHUNK]).decode()
            request = {"handle": self._handle, "buf-b64": chunk}
            reply = await self._link.execute("guest-file-write", request, asked=self._asked)
            with self._link.understood("guest-file-write"):
                rest = rest[_taken(reply["count"]) :]


@asynccontextmanager
async def reading(link: AgentLink, path: str) -> AsyncIterator[GuestReader]:
    """See `Agent.reading`."""
    asked = f"to read {path!r}"
    async with _opened(link, path, "r", asked) as handle:
        yield GuestReader(link, handle, asked)


@asynccontextmanager
async def writing(link: AgentLink, path: str, append: bool) -> AsyncIterator[GuestWriter]:
    """See `Agent.writing`."""
    asked = f"to write {path!r}"
    async with _opened(link, path, "a" if append else "w", asked) as handle:
        yield GuestWriter(link, handle, asked)


async def read_file(link: AgentLink, path: str, limit: int) -> bytes:
    """The whole of a file; see `Agent.read_file`."""
    data = bytearray()
    async with reading(link, path) as file:
        while part := await file.read():
            data += part
            if len(data) > limit:
                why = f"it is longer than {limit} bytes"
                raise AgentRefused(link.name, f"to read {path!r}", why)
    return bytes(data)


async def write_file(link: AgentLink, path: str, data: bytes, append: bool) -> None:
    """Write the whole of *data*; see `Agent.write_file`."""
    async with writing(link, path, append) as file:
        await file.write(data)


def _taken(count: int) -> int:
    if count <= 0:
        raise ValueError(f"{count} bytes were written")
    return count


@asynccontextmanager
async def _opened(link: AgentLink, path: str, mode: str, asked: str) -> AsyncIterator[int]:
    """A file handle in the guest, closed in every case.

    The close is part of what may fail: only there a full disk shows.
    """
    handles: list[int] = []

    def opened(reply: Any) -> None:
        with link.understood("guest-file-open"):
            handles.append(int(reply))

    async def close(handle: int) -> None:
        await link.execute("guest-file-close", {"handle": handle}, asked=asked)

    try:
        request = {"path": path, "mode": mode}
        await link.ask("guest-file-open", request, opened, close, asked=asked)
        yield handles[0]
        await close(handles[0])
    except BaseException:
        if handles:
            # Handles are never given twice, so closing a closed one harms nobody.
            await link.tidy(partial(close, handles[0]))
        raise
