"""What a machine that moves has of the networks of its farm.

To another process of its supervisor it has a second cable laid for every NIC: a port of the
switch, a tap on the bridge.  Nothing is heard by it until the guest stands still, so that no
frame comes twice.  QEMU announces the guest once it is there (RARP), from which a switch or a
bridge learns the new place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import trio

from qmpkit.errors import Fault, QmpkitError
from qmpkit.machine.keep import Home
from qmpkit.process.places import discard, who_is_at
from qmpkit.spec.farm_networks import Bridge, is_carried
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.record import Record

__all__ = ["cables_of", "faults_away", "faults_within", "vacated"]

log = logging.getLogger("qmpkit.supervisor")


def cables_of(record: Record) -> tuple[str, ...]:
    """Its NICs that have a cable in a network of its farm."""
    return tuple(it.nic for it in record.joined if is_carried(it.network))


def faults_away(record: Record) -> Iterator[Fault]:
    """Which of its cables cannot follow it to another supervisor."""
    if record.joined:
        message = "its cables in the networks of its farm cannot follow it"
        yield Fault("networks", message, "take it out of them first")


def faults_within(record: Record) -> Iterator[Fault]:
    """Which of its NICs cannot have a second cable here."""
    for join in record.joined:
        if isinstance(join.network, Bridge) and join.network.vhost:
            message = f"{join.nic!r} is in {join.name!r} by vhost: its frames go past QEMU"
            yield Fault("networks", message, "restart it instead, or have vhost = false there")


async def vacated(kept: Kept, means: Means, gone: Home) -> None:
    """One of its two processes is no more: leave nothing of its sockets and its cables."""
    await trio.to_thread.run_sync(discard, gone.sockets)
    try:
        await means.networks.drop(who_is_at(gone.sockets, kept.name), ())
    except QmpkitError as error:  # it goes with the next start
        log.warning("of the cables of machine %r something is left: %s", kept.name, error)
