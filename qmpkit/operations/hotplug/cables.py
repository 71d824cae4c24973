"""The host's side of a NIC that goes: when QEMU survives that it is taken away."""

from __future__ import annotations

import logging
import re

import trio

from qmpkit.operations._protocols import Monitor

__all__ = ["remove_cable"]

log = logging.getLogger("qmpkit.operations")

_GRACE = 10.0
_SAYS_NOTHING = 0.5
_LOOK_AGAIN = 0.005


async def remove_cable(machine: Monitor, netdev: str) -> None:
    """`netdev_del` of what may be a `stream`; CommandRefused when there is none.

    QEMU binds or connects its socket in a thread, and goes on with the netdev afterwards as if
    it were still there: 7.2 and 10.0 die of one that has gone meanwhile.  So that is waited
    for.  One that still connects after ten seconds is left (`info network`; 7.2 does not say).
    """
    with trio.move_on_after(_GRACE) as bound:
        await _set_up(machine, netdev)
    if bound.cancelled_caught:
        log.warning("machine %r: the netdev %r still connects: it is left", machine.name, netdev)
        return
    await machine.execute("netdev_del", {"id": netdev})


async def _set_up(machine: Monitor, netdev: str) -> None:
    """No event tells of it, and only people are told at all."""
    line = rf"\b{re.escape(netdev)}: index=\d+,type=stream,(initializing|connecting|)\r?$"
    under_way = re.compile(line, re.MULTILINE)
    silent_until = trio.current_time() + _SAYS_NOTHING
    while True:
        said = await machine.execute("human-monitor-command", {"command-line": "info network"})
        found = under_way.search(str(said))
        # Of one that listens 7.2 says nothing, before and after: that is done in a moment.
        if found is None or (not found[1] and trio.current_time() > silent_until):
            return
        await trio.sleep(_LOOK_AGAIN)
