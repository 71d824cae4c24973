"""Between QEMU and the clients that fetch a backup from it, so that none of them holds it up.

QEMU waits for its NBD clients before it pauses, and when its server is to stop, with all
else standing still: one that does not read what it has asked for freezes the guest for as
long as it likes, and before 8.2 one that says nothing does, too.  A client of ours loses
its connection instead.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from qmpkit._trio import raise_collapsed

__all__ = ["STALL", "relayed"]

STALL = 60.0
"""Seconds that a client may leave unread what it has asked for."""

_PIECE = 256 << 10
_BACKLOG = 64
_ENDED = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)

log = logging.getLogger("qmpkit.backups")


@asynccontextmanager
async def relayed(
    socket: Path, server: Path, tcp: tuple[str, int] | None = None
) -> AsyncIterator[int | None]:
    """Listen at *socket* (0600), and by *tcp*, for clients of *server* while the block lasts.

    Gives the TCP port, which the kernel chooses for 0.  No connection to *server* is left
    after it.  OSError when it cannot be listened there.
    """
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(socket))
        await trio.to_thread.run_sync(socket.chmod, 0o600)
        listening.listen(_BACKLOG)
        listeners = [trio.SocketListener(listening)]
        if tcp is not None:
            listeners += await trio.open_tcp_listeners(tcp[1], host=tcp[0])
        serve = partial(trio.serve_listeners, partial(_relay, server))
        port = None if tcp is None else int(listeners[-1].socket.getsockname()[1])
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, listeners)
                yield port
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_collapsed(group)


async def _relay(server: Path, client: trio.SocketStream) -> None:
    """One client's connection, until either side ends it."""
    try:
        async with (
            client,
            await trio.open_unix_socket(server) as qemu,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_pump, client, qemu, nursery.cancel_scope)
            await _pump(qemu, client, nursery.cancel_scope, STALL)
    except* _ENDED as ended:
        log.debug("a client of %s is gone: %r", server, ended.exceptions)


async def _pump(
    source: trio.SocketStream,
    sink: trio.SocketStream,
    both: trio.CancelScope,
    patience: float = float("inf"),
) -> None:
    while piece := await source.receive_some(_PIECE):
        with trio.fail_after(patience):
            await sink.send_all(piece)
    both.cancel()
