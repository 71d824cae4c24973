"""To the monitor of a QEMU that somebody else started.

A monitor serves one client.  While it is held, QEMU's listening socket still
takes a few more connections and leaves them without a greeting; the next one is
turned away by the kernel.  So silence has two meanings, which need two cures.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from qmpkit.qmp.errors import MonitorAbsent, MonitorBusy, MonitorSilent
from qmpkit.qmp.session import Observer, Session, open_session

__all__ = ["connect"]

BUSY_CURE = (
    "end the other client, or start QEMU with a second monitor"
    " (-qmp unix:PATH,server=on,wait=off) and give its path as `second`"
)
SILENT_CURE = (
    "QEMU is stopped or stuck: look at its state (ps, /proc/PID/stack) and end it with a signal"
)
ACCEPTED, QUEUED = "03", "02"  # the states of a listener's connections in /proc/net/unix

StrPath = str | os.PathLike[str]


@asynccontextmanager
async def connect(
    path_or_socket: StrPath | socket.socket,
    *,
    second: StrPath | None = None,
    name: str | None = None,
    greeting_timeout: float = 2.0,
    observer: Observer | None = None,
) -> AsyncIterator[Session]:
    """A session with a running QEMU, by its monitor's unix socket or a connected socket.

    When the monitor does not greet within *greeting_timeout* seconds, *second*, the
    path of the same QEMU's second monitor, is tried in the same way.  *name* is what
    messages and events call the machine; default: the path.  Every socket opened is
    closed in every case, and so is one that was given.  Leaving the block leaves
    QEMU running.

    Raises `MonitorAbsent` when nothing listens there, `MonitorBusy` when another
    client holds the monitor, `MonitorSilent` when QEMU is wedged, `MonitorLost` and
    `MonitorGarbled` as `open_session` does.
    """
    given: list[StrPath | socket.socket] = [path_or_socket]
    if second is not None:
        given.append(second)
    async with AsyncExitStack() as stack:
        yield await _first_to_greet(stack, given, name, greeting_timeout, observer)


async def _first_to_greet(
    stack: AsyncExitStack,
    places: Sequence[StrPath | socket.socket],
    name: str | None,
    patience: float,
    observer: Observer | None,
) -> Session:
    silent: MonitorSilent | None = None
    for place in places:
        label = name or _label(place)
        try:
            sock = place if isinstance(place, socket.socket) else _dial(os.fspath(place), label)
            return await stack.enter_async_context(
                open_session(sock, name=label, greeting_timeout=patience, observer=observer)
            )
        except MonitorSilent as error:
            # The first monitor's trouble is the one to report: the second was a way round.
            silent = silent or error
    assert silent is not None
    raise silent
