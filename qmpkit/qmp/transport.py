"""How bytes leave and arrive: straight on a socket, or over any trio stream.

Sending never waits: what the kernel does not take at once is queued, and one
writer sends the queue in order.  A caller may give up on a message at any time;
one whose first byte has left is still sent to its end, so the peer never sees a
half message with another one behind it.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import trio

from qmpkit.errors import HostLacks

__all__ = ["Outgoing", "Transport", "duplicates", "transport_for"]

USUAL_READ = 16 * 1024
LARGE_READ = 256 * 1024
NO_FDS = "this monitor connection cannot carry file descriptors", "connect by a unix socket"

Spawn = Callable[[Callable[[], Awaitable[None]]], None]


class Outgoing:
    """One message on its way; `begun` once its first byte may have left."""

    __slots__ = ("begun", "fds", "rest")

    def __init__(self, data: bytes, fds: Sequence[int] = ()) -> None:
        self.rest = memoryview(data)
        self.fds = fds
        self.begun = False

    def close(self) -> None:
        """Close the descriptors: they have been sent, or never will be."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)


class Transport(Protocol):
    """What a session needs of its connection."""

    def send(self, data: bytes, fds: Sequence[int] = ()) -> Outgoing | None:
        """Send or queue; what was queued is returned.

        *fds* are closed once sent, and in every other case.  Raises OSError when the
        peer has gone, HostLacks when this connection carries no descriptors.
        """

    def withdraw(self, message: Outgoing) -> bool:
        """Take a queued message back; False when it has begun to leave."""

    async def receive(self) -> bytes:
        """The next bytes; empty at the end of the stream."""

    def hang_up(self) -> None:
        """Nothing more will be sent, and `receive` reaches its end; never blocks."""

    async def aclose(self) -> None:
        """Close at once; queued messages are dropped."""


def transport_for(stream: socket.socket | trio.abc.Stream, spawn: Spawn) -> Transport:
    """The transport for a connected socket or a stream; it owns *stream* from now on.

    *spawn* starts the writer task, which lives only while something is queued.
    """
    if isinstance(stream, socket.socket):
        return SocketTransport(stream, spawn)
    return StreamTransport(stream, spawn)


class SocketTransport:
    """A non-blocking socket, read and written directly: no lock, no task switch to send."""

    def __init__(self, sock: socket.socket, spawn: Spawn) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._spawn = spawn
        self._queue: deque[Outgoing] = deque()
        self._read_size = USUAL_READ

    def send(self, data: bytes, fds: Sequence[int] = ()) -> Outgoing | None:
        sent = 0
        if not (fds or self._queue):
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            else:
                if sent == len(data):
                    return None
        message = Outgoing(data, fds)
        if fds and self._sock.family != socket.AF_UNIX:
            message.close()
            raise HostLacks(*NO_FDS)
        message.rest = message.rest[sent:]
        message.begun = sent > 0
        return self._enqueue(message)

    def _enqueue(self, message: Outgoing) -> Outgoing | None:
        try:
            if not self._queue and self._push(message):
                return None
        except BaseException:
            message.close()
            raise
        self._queue.append(message)
        if len(self._queue) == 1:
            self._spawn(self._write_queue)
        return message

    def withdraw(self, message: Outgoing) -> bool:
        return _withdraw(self._queue, message)

    async def receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(self._read_size)
            except BlockingIOError:
                continue
            # A small buffer is cheap to allocate; a long reply is read in large pieces.
            full = len(data) == self._read_size
            self._read_size = LARGE_READ if full else USUAL_READ
            return data

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):  # the peer may have gone already
            self._sock.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        _drop_all(self._queue)

    def _push(self, message: Outgoing) -> bool:
        """Send what the kernel takes; True when the message has left whole."""
        while message.rest:
            try:
                if message.fds:
                    sent = self._sock.sendmsg([message.rest], [_rights(message.fds)])
                    message.close()
                else:
                    sent = self._sock.send(message.rest)
            except BlockingIOError:
                return False
            message.begun = True
            message.rest = message.rest[sent:]
        return True

    async def _write_queue(self) -> None:
        try:
            while self._queue:
                if self._push(self._queue[0]):
                    self._queue.popleft()
                else:
                    await trio.lowlevel.wait_writable(self._sock)
        except OSError:
            # The reader tells everybody, after the replies that are still to be read.
            _drop_all(self._queue)
            self.hang_up()


class StreamTransport:
    """Any trio stream: a memory stream in tests, TLS, a pipe pair."""

    def __init__(self, stream: trio.abc.Stream, spawn: Spawn) -> None:
        self._stream = stream
        self._spawn = spawn
        self._queue: deque[Outgoing] = deque()
        self._reading: trio.CancelScope | None = None
        self._hung_up = False

    def send(self, data: bytes, fds: Sequence[int] = ()) -> Outgoing | None:
        message = Outgoing(data, fds)
        if fds:
            message.close()
            raise HostLacks(*NO_FDS)
        self._queue.append(message)
        if len(self._queue) == 1:
            self._spawn(self._write_queue)
        return message

    def withdraw(self, message: Outgoing) -> bool:
        return _withdraw(self._queue, message)

    async def receive(self) -> bytes:
        with trio.CancelScope() as self._reading:
            if not self._hung_up:
                return bytes(await self._stream.receive_some())
        return b""

    def hang_up(self) -> None:
        self._hung_up = True
        if self._reading is not None:
            self._reading.cancel()

    async def aclose(self) -> None:
        _drop_all(self._queue)
        await trio.aclose_forcefully(self._stream)

    async def _write_queue(self) -> None:
        try:
            while self._queue:
                message = self._queue[0]
                message.begun = bool(message.rest)
                if message.begun:
                    await self._stream.send_all(bytes(message.rest))
                self._queue.popleft()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            _drop_all(self._queue)
            self.hang_up()


def _withdraw(queue: deque[Outgoing], message: Outgoing) -> bool:
    if message.begun or message not in queue:
        return False
    # The head stays: the writer is waiting to send it, and finds it empty.
    if queue[0] is message:
        message.rest = message.rest[:0]
    else:
        queue.remove(message)
    message.close()
    return True


def _drop_all(queue: deque[Outgoing]) -> None:
    while queue:
        queue.popleft().close()


def _rights(fds: Sequence[int]) -> tuple[int, int, Any]:
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))


def duplicates(fds: Sequence[int]) -> tuple[int, ...]:
    """Copies that the caller of this closes; raises OSError, and then there are none."""
    with contextlib.ExitStack() as undo:
        copies = []
        for fd in fds:
            copies.append(os.dup(fd))
            undo.callback(os.close, copies[-1])
        undo.pop_all()
    return tuple(copies)
