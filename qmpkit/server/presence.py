"""Clients that go while something is done for them alone: then it is given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from starlette.types import Receive

from qmpkit._trio import service_nursery
from qmpkit.server.answers import Refused

__all__ = ["gone", "while_there"]

T = TypeVar("T")


async def while_there(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """What *work* gives for a client that has sent all; Refused, and cancelled, when it goes."""
    with trio.CancelScope() as scope:
        async with service_nursery() as services:
            services.start_soon(gone, receive, scope)
            return await work()
    raise Refused("the client has gone")


async def gone(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel *scope* when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
