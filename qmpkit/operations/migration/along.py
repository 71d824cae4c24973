"""Disks on their way to a machine's destination, around the way of its memory.

    mirrors are begun       both ends are written to, the source reads its own
    memory moves            …
    pre-switchover          the mirrors are ended; both images are the same for good
    completed               the destination has the new images, the source its own

Until the destination is told to run, what it has is thrown away when anything fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from qmpkit.errors import Fault
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.convergence import Copying
from qmpkit.operations.migration.incoming import Incoming
from qmpkit.operations.migration.mirrors import Mirrors, mirroring
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.storage import DiskMove, DiskPlaces, moves_of
from qmpkit.operations.migration.storage_there import (
    Door,
    ends_serving,
    place_faults,
    room_fault,
    serves,
)
from qmpkit.process.rundir import machine_dir, socket_path

__all__ = ["Along", "again_planned", "planned_moves", "taken_along"]

_SOCKET = "disks"


async def planned_moves(
    source: Machine, disks: DiskPlaces, *, collapse: bool
) -> tuple[tuple[DiskMove, ...], tuple[Fault, ...]]:
    """The disks that go along to a place on this host, and all that is in the way.

    Raises HostLacks when nothing is but the room for them.
    """
    moves, faults = await moves_of(source, source.spec, disks, collapse=collapse)
    found = (*faults, *await trio.to_thread.run_sync(lambda: tuple(place_faults(moves))))
    lacks = None if found else await trio.to_thread.run_sync(room_fault, moves)
    if lacks is not None:
        lacks.source = f"machine {source.name!r}"
        raise lacks
    return moves, found


async def again_planned(source: Machine, incoming: Incoming) -> tuple[Fault, ...]:
    """What has changed about the disks since their new images were made; their bitmaps follow."""
    before = incoming.moves
    if not before:
        return ()
    files = {move.id: move.disk.file for move in before}
    moves, faults = await moves_of(source, source.spec, files, collapse=incoming.collapse)
    hint = "make another destination"
    now = {move.id: _matters(move) for move in moves}
    changed = [
        Fault(f"disks.{move.id}", "it has changed since its new image was made", hint)
        for move in before
        if now.get(move.id) != _matters(move)
    ]
    incoming.moves = moves
    return (*faults, *changed)


def _matters(move: DiskMove) -> tuple[object, ...]:
    return move.source, move.file, move.size, move.base


class Along:
    """The disks of one migration that go along, alike at both ends; perhaps none."""

    def __init__(self, incoming: Incoming, mirrors: Mirrors | None) -> None:
        self._incoming = incoming
        self._mirrors = mirrors

    async def settle(self) -> None:
        """Both ends are the same for good: the guest stands still, and runs on at one of them.

        From here on a start is right that begins with the new images, whoever dies.
        """
        if self._mirrors is None:
            return
        await self._mirrors.settle()
        await ends_serving(self._incoming.machine)
        if self._incoming.on_record is not None:
            await self._incoming.on_record.make_sure()


@asynccontextmanager
async def taken_along(
    source: Machine,
    incoming: Incoming,
    options: MigrationOptions,
    told: Callable[[tuple[Copying, ...]], object],
) -> AsyncIterator[Along]:
    """Have the disks that go along alike at both ends, and keep them so within the block.

    Whatever fails, nothing of it is left at the source.  What is left at the destination ends
    with it.
    """
    if not incoming.moves:
        yield Along(incoming, None)
        return
    async with machine_dir(source.name) as folder:
        door = Door(server={"type": "unix", "path": str(socket_path(folder, _SOCKET))})
        await serves(incoming.machine, incoming.moves, door)
        async with mirroring(source, incoming.moves) as mirrors:
            await mirrors.start(door, options.max_bandwidth or 0)
            await mirrors.alike(told)
            yield Along(incoming, mirrors)
