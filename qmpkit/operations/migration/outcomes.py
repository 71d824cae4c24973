"""What a migration that came to nothing, or lost its guest, is told as: one error, by its cause."""

from __future__ import annotations

import trio

from qmpkit.errors import MachineDied, MachineGone
from qmpkit.machine.machine import Machine
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.migration.end import End
from qmpkit.operations.migration.errors import MigrationFailed, MigrationLost
from qmpkit.qmp.errors import CommandRefused, MonitorLost

__all__ = ["lost", "told_as"]


def told_as(source: Machine, end: End, error: BaseException, said: str) -> BaseException:
    """Why nothing has moved; *said*: the last that the destination had to say."""
    found = _cause(source, end, error, said)
    if isinstance(found, MigrationFailed) and source.maimed:
        return MigrationFailed(source.name, f"{found.why}; {source.maimed}", found.said)
    return found


def _cause(source: Machine, end: End, error: BaseException, said: str) -> BaseException:
    name = source.name
    match error:
        case MigrationFailed() | MigrationLost():  # no guest is lost that its source has yet
            return source.ended("migrating") or MigrationFailed(name, error.why, said or error.said)
        case CommandRefused() | JobFailed():
            return MigrationFailed(name, str(error), said)
        case MachineDied() | MachineGone():
            return source.ended("migrating") or end.has_ended()
        case MonitorLost() if source.qmp.lost is None:
            return end.has_ended()
    return error


def lost(name: str, error: BaseException, bound: float) -> MigrationLost:
    """Why the guest is lost: by what it was, or, when it was only cancelled, by how long."""
    parts = BaseExceptionGroup("", [error]).split(trio.Cancelled)[1]
    if parts is None:
        return MigrationLost(name, f"it was cancelled, and not all there {bound:g} s later")
    why = _leaf(parts)
    return why if isinstance(why, MigrationLost) else MigrationLost(name, str(why) or repr(why))


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group in which others only follow."""
    chosen = group.split(MigrationLost)[0] or group
    error: BaseException = chosen
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
