"""A guest reached by its machine's own sockets, while no daemon holds them.

The monitor for tools is taken, so that a daemon that starts meanwhile has its own.  A
console or an agent serves one client: what a daemon dials meanwhile waits in the socket's
queue, and is served when we have hung up.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from qmpkit._trio import service_nursery
from qmpkit.errors import Fault, QmpkitError, SpecInvalid
from qmpkit.machine.keep import examined
from qmpkit.machine.state import State, state_of
from qmpkit.operations.agent import Agent
from qmpkit.operations.completed import Completed
from qmpkit.qmp.connect import connect
from qmpkit.qmp.session import Session
from qmpkit.spec.argv import TOOLS
from qmpkit.spec.names import chardev_id
from qmpkit.supervisor.onlooker import Seen

__all__ = ["ChannelHeld", "agent_of", "console_of", "run_in"]

PATIENCE = 5.0
"""Seconds that the monitor of a living machine is given to answer."""

_FREE = "disconnected:"  # how `query-chardev` describes a socket without a client


class ChannelHeld(QmpkitError):
    """Somebody else has the only place at a console or an agent."""


@asynccontextmanager
async def console_of(seen: Seen, serial: str) -> AsyncIterator[trio.SocketStream]:
    """A machine's console; raises ChannelHeld when somebody else uses it, and as `connect`."""
    async with _monitor(seen) as (monitor, _):
        await _check_free(monitor, seen, serial)
        stream = _dialled(seen, serial)
    async with stream:
        yield stream


@asynccontextmanager
async def agent_of(seen: Seen) -> AsyncIterator[Agent]:
    """The agent of a machine's guest, which runs; raises ChannelHeld, and as `connect`."""
    name = seen.record.name
    if not seen.record.spec.agent:
        fault = Fault("agent", "it has no guest agent channel", "add `agent = true`")
        raise SpecInvalid([fault], f"machine {name!r}")
    async with _monitor(seen) as (monitor, state), service_nursery() as nursery:
        _check_runs(name, state)
        await _check_free(monitor, seen, "agent")
        agent = Agent(_dialled(seen, "agent"), name=name, monitor=monitor)
        nursery.start_soon(agent.serve)
        yield agent


async def run_in(seen: Seen, argv: Sequence[str], stdin: bytes) -> Completed:
    """Run a program in the guest; cancelled, it is killed."""
    async with agent_of(seen) as agent:
        return await agent.run(argv, input=stdin)


@asynccontextmanager
async def _monitor(seen: Seen) -> AsyncIterator[tuple[Session, State]]:
    """A monitor of the machine, and of no other, and what the machine does."""
    name, home = seen.record.name, seen.home
    first, second = home.socket(TOOLS), home.socket("qmp")
    if not first.exists():  # somebody has removed it
        first, second = second, first
    async with connect(first, second=second, name=name, greeting_timeout=PATIENCE) as session:
        yield session, state_of(await examined(session, seen.record.spec, PATIENCE))


def _check_runs(name: str, state: State) -> None:
    if state is not State.RUNNING:
        cure = "`qmpkit serve --detach` starts a daemon, `qmpkit start` lets it run"
        raise QmpkitError(
            f"the guest of machine {name!r} would not answer: it is {state.value}. Cure: {cure}"
        )


async def _check_free(monitor: Session, seen: Seen, channel: str) -> None:
    label = chardev_id(channel)
    for device in await monitor.execute("query-chardev"):
        if device["label"] == label and not device["filename"].startswith(_FREE):
            raise _held(seen, channel)


def _dialled(seen: Seen, channel: str) -> trio.SocketStream:
    """Our end of a channel.  A unix socket connects at once or not at all."""
    path = seen.home.socket(channel)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(os.fspath(path))
    except BlockingIOError as error:  # its queue is full
        sock.close()
        raise _held(seen, channel) from error
    except OSError as error:
        sock.close()
        what = f"{channel} of machine {seen.record.name!r} cannot be reached at {path}"
        raise QmpkitError(f"{what}: {error.strerror}") from error
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def _held(seen: Seen, channel: str) -> ChannelHeld:
    what = f"somebody else uses {channel} of machine {seen.record.name!r}, which serves one client"
    cure = "end the other (another terminal?), or start a daemon, through which many can"
    return ChannelHeld(f"{what}. Cure: {cure}")
