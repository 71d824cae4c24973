"""The fake's end of a connection: a trio stream, or a socket that may bring descriptors."""

from __future__ import annotations

import array
import socket
from typing import Protocol

import trio

__all__ = ["Link", "link_for"]

MOST_FDS = 16


class Link(Protocol):
    """What the fake needs of a connection."""

    fds: list[int]
    """Descriptors that came and were not taken yet; whoever takes one closes it."""

    async def receive(self) -> bytes: ...

    async def send(self, data: bytes) -> None: ...

    async def aclose(self) -> None: ...


def link_for(stream: socket.socket | trio.abc.Stream) -> Link:
    """The link for a connected socket or a stream; it owns *stream* from now on."""
    return _SocketLink(stream) if isinstance(stream, socket.socket) else _StreamLink(stream)


class _StreamLink:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self.fds: list[int] = []
        self._stream = stream

    async def receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class _SocketLink(_StreamLink):
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        super().__init__(trio.SocketStream(self._sock))

    async def receive(self) -> bytes:
        fds = array.array("i")
        try:
            data, control, _, _ = await self._sock.recvmsg(
                65536, socket.CMSG_SPACE(MOST_FDS * fds.itemsize)
            )
        except (OSError, trio.ClosedResourceError):  # reset, or our own hang-up: an end
            return b""
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        self.fds.extend(fds)
        return data
