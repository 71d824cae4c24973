"""The daemon: a supervisor that keeps a farm's machines, and the API in front of it."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_http

from qmpkit._trio import raise_collapsed
from qmpkit.server.api import make_app
from qmpkit.server.door import BACKLOG, hang_up, opened_door
from qmpkit.server.jobs import Jobs
from qmpkit.server.moves import opened_moves, take_in
from qmpkit.supervisor.supervisor import Supervisor

__all__ = ["IDLE", "POWERDOWN_GRACE", "config_for", "run_daemon"]

log = logging.getLogger("qmpkit.server")

POWERDOWN_GRACE = 30.0
"""Seconds that a guest has to power down when it is stopped and nobody says otherwise."""

_END_GRACE = 5.0
IDLE = 30.0
"""Seconds in which the head of a request has to be here, however it trickles in."""

Ready = Callable[[Path], object]


async def run_daemon(
    farm: str,
    *,
    group: str | None = None,
    handed: int | None = None,
    ready: Ready = lambda path: None,
) -> None:
    """Serve the farm until SIGTERM, SIGINT, or a client's word; its machines live on.

    *group*: whose members may use it besides its user.  *handed*: the descriptor of the
    listening socket that systemd has opened.  *ready* is called with the socket's path
    when requests are answered.  A second signal ends it at once, and so does the first
    while machines are still being adopted.

    Raises SupervisorRunning when another daemon or program has the farm, HostLacks,
    JournalNewer.
    """
    end, up = trio.Event(), trio.Event()
    lab = Supervisor(farm, keep=True, powerdown_grace=POWERDOWN_GRACE)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_obey, signals, end, up, nursery.cancel_scope)
                async with lab:
                    with (
                        opened_moves(lab.runtime_dir) as moves,
                        opened_door(farm, lab.runtime_dir, group, handed) as (listener, path),
                    ):
                        up.set()
                        await _serve(lab, listener.fileno(), moves, path, end, ready)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            raise_collapsed(errors)


async def _serve(
    lab: Supervisor,
    fd: int,
    moves: socket.socket,
    path: Path,
    end: trio.Event,
    ready: Ready,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_in, lab, moves)
        nursery.start_soon(_hang_up, path, end)
        nursery.start_soon(_ready, ready, path, lab)
        app = make_app(lab, Jobs(nursery), end.set)
        await serve_http(
            app,  # type: ignore[arg-type]
            config_for(fd),
            shutdown_trigger=end.wait,
            mode="asgi",
        )
        nursery.cancel_scope.cancel()


async def _ready(ready: Ready, path: Path, lab: Supervisor) -> None:
    log.info("farm %r: %d machines, listening at %s", lab.name, len(lab.kept), path)
    ready(path)


async def _obey(
    signals: AsyncIterator[int], end: trio.Event, up: trio.Event, all_: trio.CancelScope
) -> None:
    async for number in signals:
        log.info("%s: the daemon ends, its machines live on", signal.Signals(number).name)
        if end.is_set() or not up.is_set():
            all_.cancel()
        end.set()


async def _hang_up(path: Path, end: trio.Event) -> None:
    """End what clients have not ended by themselves a while after *end*, or when cancelled.

    hypercorn lets nothing interrupt a send: one client that does not read would keep it.
    """
    try:
        await end.wait()
        await trio.sleep(_END_GRACE)
    finally:
        hang_up(path)


def config_for(fd: int, idle: float = IDLE) -> Config:
    """How HTTP is served at the listening socket *fd*; *idle*: seconds for a request's head."""
    config = Config()
    config.bind = [f"fd://{os.dup(fd)}"]  # which hypercorn closes
    config.backlog = BACKLOG  # it listens once more
    config.include_server_header = False
    config.include_date_header = False
    config.graceful_timeout = _END_GRACE
    config.keep_alive_timeout = idle
    config.h11_max_incomplete_size = 16384
    config.errorlog = log
    config.loglevel = "WARNING"
    return config
