"""Ending a process in order: ask it, tell it, kill it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from qmpkit._trio import service_nursery
from qmpkit.errors import QmpkitError
from qmpkit.process.child import ChildLike
from qmpkit.process.errors import ProcessStuck
from qmpkit.process.status import ExitStatus

__all__ = ["stop_child"]

REFUSED_GRACE = 0.5
"""Seconds left to a process whose monitor failed on `quit`: most often it is just ending."""

logger = logging.getLogger(__name__)

Ask = Callable[[], Awaitable[object]]


async def stop_child(
    child: ChildLike,
    *,
    ask: Ask | None = None,
    quit_grace: float = 10.0,
    term_grace: float = 5.0,
    kill_grace: float = 10.0,
) -> ExitStatus:
    """End *child*: *ask* (QMP `quit`), then SIGTERM, then SIGKILL, each with a grace in seconds.

    Goes on to the next step when a grace is over; when *ask* fails with one of
    our own errors, half a second later.  Returns as soon as the process has ended.
    Raises `ProcessStuck` when even SIGKILL did not end it.

    Cancellation stops the procedure where it is; leaving `child()` then kills.
    To stop in order while cancelled, call this under a shield whose deadline is
    the sum of the graces.
    """
    if ask is not None:
        await _asked(child, ask, quit_grace)
    for step, grace in ((child.terminate, term_grace), (child.kill, kill_grace)):
        if child.status is not None:
            return child.status
        logger.info("process %d goes on, next: %s", child.pid, step.__name__)
        step()
        with trio.move_on_after(grace):
            return await child.wait()
    raise ProcessStuck("the process", child.pid, kill_grace)


async def _asked(child: ChildLike, ask: Ask, grace: float) -> None:
    """Run *ask* until the process has ended, or asking has failed, or the grace is over."""
    async with service_nursery() as services:
        with trio.move_on_after(grace) as patience:
            # A service, because the reply may never come although the process ends.
            services.start_soon(_try, ask, patience)
            await child.wait()


async def _try(ask: Ask, patience: trio.CancelScope) -> None:
    try:
        await ask()
    except QmpkitError as error:
        logger.info("could not ask a process to quit: %s", error)
        patience.deadline = min(patience.deadline, trio.current_time() + REFUSED_GRACE)
