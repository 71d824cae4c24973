"""From a connected stream to a negotiated session, and back to nothing."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import trio

from qmpkit._trio import service_nursery
from qmpkit.qmp.agent import AgentSession
from qmpkit.qmp.session import Observer, Session

__all__ = ["open_session"]


@asynccontextmanager
async def open_session(
    stream: socket.socket | trio.abc.Stream,
    *,
    name: str,
    kind: Literal["qmp", "agent"] = "qmp",
    greeting_timeout: float | None = 10.0,
    observer: Observer | None = None,
) -> AsyncIterator[Session]:
    """Speak QMP, or with kind "agent" the guest agent's protocol, over *stream*.

    *stream* is a connected socket (the fast way) or a trio stream; it is the
    session's from now on and is closed in every case.  *greeting_timeout* bounds
    the handshake, in seconds; with 0 an agent's is left to the first command, for a
    guest that has yet to boot, and with None it is the caller's to do (`negotiate`), who
    has something else to do before.  The reader outlives the block's cleanup: commands
    can still be sent there, also when the block is being cancelled, within a
    shield that has a deadline.  The end of the stream cancels nobody: see
    `Session.lost` and `Session.wait_lost`.

    Raises `MonitorSilent` when the handshake is not answered in time, and
    `MonitorLost` or `MonitorGarbled` when the stream ends or is no QMP.
    """
    make = AgentSession if kind == "agent" else Session
    session: Session | None = None
    try:
        async with service_nursery() as services:
            session = make(stream, name, services.start_soon, observer)
            services.start_soon(session._read, name=f"QMP reader of {name}")
            if greeting_timeout is not None:
                await session.negotiate(greeting_timeout)
            yield session
    finally:
        if session is not None:
            await session._transport.aclose()
