"""The daemon: a supervisor that keeps a farm's machines, and the API in front of it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_http

from qmpkit.server.api import make_app
from qmpkit.server.door import opened_door
from qmpkit.server.jobs import Jobs
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["POWERDOWN_GRACE", "config_for", "run_daemon"]

log = logging.getLogger("qmpkit.server")

POWERDOWN_GRACE = 30.0
"""Seconds that a guest has to power down when it is stopped and nobody says otherwise."""

_END_GRACE = 5.0
_IDLE = 30.0  # seconds that a connection may wait before its request is here

Ready = Callable[[Path], object]


async def run_daemon(
    farm: str, *, group: str | None = None, ready: Ready = lambda path: None
) -> None:
    """Serve the farm until SIGTERM, SIGINT, or a client's word; its machines live on.

    *group*: whose members may use it besides its user.  *ready* is called with the
    socket's path when requests are answered.  A second signal ends it at once.

    Raises SupervisorRunning when another daemon or program has the farm, HostLacks,
    JournalNewer.
    """
    end = trio.Event()
    lab = Supervisor(farm, keep=True, powerdown_grace=POWERDOWN_GRACE)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(lab)
            listener, path = stack.enter_context(opened_door(farm, lab.runtime_dir, group))
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(_obey, signals, end, nursery.cancel_scope)
            app = make_app(lab, Jobs(nursery), end.set)
            nursery.start_soon(_ready, ready, path, lab)
            await serve_http(
                app,  # type: ignore[arg-type]
                config_for(listener.fileno()),
                shutdown_trigger=end.wait,
                mode="asgi",
            )
            nursery.cancel_scope.cancel()


async def _ready(ready: Ready, path: Path, lab: Supervisor) -> None:
    log.info("farm %r: %d machines, listening at %s", lab.name, len(lab.kept), path)
    ready(path)


async def _obey(signals: AsyncIterator[int], end: trio.Event, all_: trio.CancelScope) -> None:
    async for number in signals:
        if end.is_set():
            all_.cancel()
        log.info("%s: the daemon ends, its machines live on", signal.Signals(number).name)
        end.set()


def config_for(fd: int) -> Config:
    """How HTTP is served at the listening socket *fd*."""
    config = Config()
    config.bind = [f"fd://{os.dup(fd)}"]  # which hypercorn closes
    config.include_server_header = False
    config.include_date_header = False
    config.graceful_timeout = _END_GRACE
    config.keep_alive_timeout = _IDLE
    config.h11_max_incomplete_size = 16384
    config.errorlog = log
    config.loglevel = "WARNING"
    return config
