"""Files of the guest, read and written through its agent."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from qmpkit.errors import QmpkitError
from qmpkit.operations.agent_link import AgentLink
from qmpkit.operations.errors import AgentRefused

__all__ = ["read_file", "write_file"]

# Bytes of a file in one message: the agent answers nobody else meanwhile.
_CHUNK = 256 * 1024
_CLEANUP_GRACE = 1.0


async def read_file(link: AgentLink, path: str, limit: int) -> bytes:
    """The whole of a file; see `Agent.read_file`."""
    asked = f"to read {path!r}"
    data = bytearray()
    async with _opened(link, path, "r", asked) as handle:
        eof = False
        while not eof:
            request = {"handle": handle, "count": _CHUNK}
            reply = await link.execute("guest-file-read", request, asked=asked)
            with link.understood("guest-file-read"):
                data += base64.b64decode(reply["buf-b64"])
                eof = bool(reply["eof"]) or reply["count"] == 0
            if len(data) > limit:
                raise AgentRefused(link.name, asked, f"it is longer than {limit} bytes")
    return bytes(data)


async def write_file(link: AgentLink, path: str, data: bytes, append: bool) -> None:
    """Write the whole of *data*; see `Agent.write_file`."""
    asked = f"to write {path!r}"
    rest = memoryview(data)
    async with _opened(link, path, "a" if append else "w", asked) as handle:
        while rest:
            chunk = base64.b64encode(rest[:_CHUNK]).decode()
            request = {"handle": handle, "buf-b64": chunk}
            reply = await link.execute("guest-file-write", request, asked=asked)
            with link.understood("guest-file-write"):
                rest = rest[_taken(reply["count"]) :]


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
    try:
        request = {"path": path, "mode": mode}
        await link.ask("guest-file-open", request, handles.append, asked=asked)
        yield handles[0]
        await link.execute("guest-file-close", {"handle": handles[0]}, asked=asked)
    except BaseException:
        if handles:
            # Handles are never given twice, so closing a closed one harms nobody.
            with trio.move_on_after(_CLEANUP_GRACE, shield=True), suppress(QmpkitError):
                await link.execute("guest-file-close", {"handle": handles[0]}, asked=asked)
        raise
