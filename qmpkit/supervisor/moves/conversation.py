"""What a supervisor that receives is asked, one question after another, and for how long it waits.

Who sends asks and we answer: it gives a sign of life at least every few seconds, so one that
says nothing for longer has vanished, whatever its connection looks like.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from qmpkit.operations.migration.silence import SILENCE
from qmpkit.operations.migration.wire import Wire, WireLost

__all__ = ["Work", "next_asked", "question"]

Work = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""What is done for a question, and answered."""


async def question(wire: Wire, can: Mapping[str, Work]) -> tuple[dict[str, Any], Work]:
    """The next question of the other side, and what is done for it; WireLost without one."""
    asked = await next_asked(wire, SILENCE)
    what = asked.get("ask")
    work = can.get(what) if isinstance(what, str) else None
    if work is None:
        raise WireLost(f"it asks {what!r:.50}, which nobody does here")
    return asked, work


async def next_asked(wire: Wire, patience: float) -> dict[str, Any]:
    """The next words of the other side; WireLost when none come for *patience* seconds."""
    try:
        with trio.fail_after(patience):
            return await wire.receive()
    except trio.TooSlowError:
        raise WireLost(f"it has said nothing for {patience:g} s") from None
