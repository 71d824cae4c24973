"""Sockets that no machine on record has."""

from __future__ import annotations

import logging
from collections.abc import Set
from pathlib import Path

import trio

from qmpkit.process.places import discard
from qmpkit.process.sockets import listened_at
from qmpkit.supervisor.events import EventLog

__all__ = ["strangers", "tell_strangers"]

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


async def tell_strangers(runtime: Path, known: Set[Path], events: EventLog) -> bool:
    """Tell of sockets without a record, and remove those that nobody listens at.

    True when there are any of the first kind.
    """
    found = await trio.to_thread.run_sync(strangers, runtime, known)
    for directory in found:
        why = f"a QEMU answers at {directory}/qmp and no machine on record has it"
        log.error("%s", why)
        events.tell(directory.name, "stranger", why)
    return bool(found)
