"""Sockets that no machine on record has."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Set
from pathlib import Path

import trio

from qmpkit.process.places import discard
from qmpkit.process.sockets import listened_at
from qmpkit.supervisor.events import EventLog

__all__ = ["strangers", "tell_strangers"]

_DYING = 5.0
"""Seconds that a process has to end which was not to outlive our predecessor.

Its start was not on record yet when that died, and the spawner, which ends it, is a process
like others: where the processors are busy we are here before it.
"""

log = logging.getLogger("qmpkit.supervisor")


def strangers(runtime: Path, known: Set[Path]) -> list[Path]:
    """Directories of sockets that nobody knows and somebody listens at.  Blocking."""
    alive = []
    for directory in runtime.iterdir():
        if directory.name[0] == "." or directory.is_symlink() or not directory.is_dir():
            continue  # what begins with a dot is not a machine's
        if directory in known:
            continue
        if listened_at(directory / "qmp"):
            alive.append(directory)
        else:
            discard(directory)
    return alive


def _see_off(directories: Iterable[Path]) -> None:
    """Wait until nobody listens there any more, for `_DYING` seconds in all.  Blocking."""
    deadline = time.monotonic() + _DYING
    for directory in directories:
        listened_at(directory / "qmp", max(0.0, deadline - time.monotonic()))


async def tell_strangers(runtime: Path, known: Set[Path], events: EventLog) -> bool:
    """Tell of sockets without a record, and remove those that nobody listens at.

    True when there are any of the first kind: whoever was only about to end is none.
    """
    found = await trio.to_thread.run_sync(strangers, runtime, known)
    if found:
        await trio.to_thread.run_sync(_see_off, found, abandon_on_cancel=True)
        found = await trio.to_thread.run_sync(strangers, runtime, known)
    for directory in found:
        why = f"a QEMU answers at {directory}/qmp and no machine on record has it"
        log.error("%s", why)
        events.tell(directory.name, "stranger", why)
    return bool(found)
