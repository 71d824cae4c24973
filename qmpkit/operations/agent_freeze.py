"""The guest's file systems, flushed and frozen for a moment, and thawed whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from qmpkit.errors import AgentSilent, GuestRefused, MachineDied, MachineGone
from qmpkit.operations.agent_link import AgentLink
from qmpkit.operations.errors import AgentRefused

__all__ = ["frozen", "thaw"]

THAW_GRACE = 10.0
"""Seconds that a guest is given to thaw."""

_ASKED = "to freeze its file systems"


@asynccontextmanager
async def frozen(link: AgentLink, longest: float) -> AsyncIterator[int]:
    """See `Agent.frozen`."""
    with trio.move_on_after(longest) as scope:
        try:
            yield int(await link.execute("guest-fsfreeze-freeze", asked=_ASKED))
        except BaseException:
            with trio.move_on_after(THAW_GRACE, shield=True), suppress(AgentSilent):
                await thaw(link)
            raise
        with trio.move_on_after(THAW_GRACE, shield=True) as thawing:
            await thaw(link)
        if thawing.cancelled_caught:
            raise AgentSilent(link.name, "to thaw its file systems", f"no answer in {THAW_GRACE} s")
    if scope.cancelled_caught:
        why = f"what was to be done meanwhile took more than {longest:g} s; they are thawed"
        raise GuestRefused(link.name, _ASKED, why)


async def thaw(link: AgentLink) -> None:
    """Let the file systems go on; nothing happens when none is frozen."""
    with suppress(AgentRefused, MachineGone, MachineDied):
        await link.execute("guest-fsfreeze-thaw", asked="to thaw its file systems")
