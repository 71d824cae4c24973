"""Where a farm's daemon takes machines in that others send: a unix socket for its user alone."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from qmpkit.errors import HostLacks
from qmpkit.operations.migration.place import MOVES
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["opened_moves", "take_in"]

log = logging.getLogger("qmpkit.server")

_AT_ONCE = 16
"""Conversations; who comes while there are so many waits."""


@contextmanager
def opened_moves(runtime: Path) -> Iterator[socket.socket]:
    """The listening socket, 0600 in a directory 0700; removed with the block.  Blocking.

    The supervisor's lock must be held: what is left there is of a daemon that was killed.
    Raises HostLacks.
    """
    path = runtime / MOVES
    shutil.rmtree(path.parent, ignore_errors=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            path.parent.mkdir(mode=0o700)
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen(_AT_ONCE)
        except OSError as error:
            what = f"cannot listen at {path}: {error.strerror or error}"
            raise HostLacks(what, "make it writable") from error
        yield listener
    finally:
        listener.close()
        with suppress(OSError):
            shutil.rmtree(path.parent)


async def take_in(lab: Supervisor, listener: socket.socket) -> None:
    """Serve whoever comes, until cancelled."""
    turns = trio.CapacityLimiter(_AT_ONCE)
    door = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))

    async def serve(stream: trio.SocketStream) -> None:
        async with turns:
            try:
                if (name := await lab.receive(stream)) is not None:
                    log.info("machine %r has migrated here", name)
            except Exception:  # the siblings are not to pay for it
                log.exception("a conversation about a machine that moves")

    await trio.serve_listeners(serve, [door])
