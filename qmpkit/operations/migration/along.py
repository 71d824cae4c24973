"""Disks on their way to a machine's destination, around the way of its memory.

    mirrors are begun       both ends are written to, the source reads its own
    memory moves            …
    pre-switchover          the mirrors are ended; both images are the same for good
    completed               the destination has the new images, the source its own

Until the destination is told to run, what it has is thrown away when anything fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from qmpkit.errors import Fault
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.convergence import Copying, copying_round
from qmpkit.operations.migration.end import End
from qmpkit.operations.migration.mirrors import Mirrors, mirroring
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.storage import DiskMove, DiskPlaces, moves_of
from qmpkit.operations.migration.storage_there import place_faults, room_fault
from qmpkit.operations.migration.transfer import Told

__all__ = ["Along", "again_planned", "planned_moves", "taken_along"]


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


async def again_planned(
    source: Machine, before: Sequence[DiskMove], *, collapse: bool
) -> tuple[tuple[DiskMove, ...], tuple[Fault, ...]]:
    """The disks that go along as they are by now, and what no longer fits their new images."""
    if not before:
        return (), ()
    files = {move.id: move.disk.file for move in before}
    moves, faults = await moves_of(source, source.spec, files, collapse=collapse)
    hint = "make another destination"
    now = {move.id: _matters(move) for move in moves}
    changed = [
        Fault(f"disks.{move.id}", "it has changed since its new image was made", hint)
        for move in before
        if now.get(move.id) != _matters(move)
    ]
    return moves, (*faults, *changed)


def _matters(move: DiskMove) -> tuple[object, ...]:
    return move.source, move.file, move.size, move.base


class Along:
    """The disks of one migration that go along, alike at both ends; perhaps none."""

    def __init__(self, end: End, mirrors: Mirrors | None) -> None:
        self._end = end
        self._mirrors = mirrors

    async def settle(self) -> None:
        """Both ends are the same for good: the guest stands still, and runs on at one of them."""
        if self._mirrors is not None:
            await self._mirrors.settle()
            await self._end.alike()

    async def cut(self) -> None:
        """The migration has failed: have nothing at the source wait for the destination."""
        if self._mirrors is not None:
            await self._mirrors.cut()


@asynccontextmanager
async def taken_along(
    source: Machine,
    end: End,
    moves: Sequence[DiskMove],
    options: MigrationOptions,
    told: Told,
) -> AsyncIterator[Along]:
    """Have the disks that go along alike at both ends, and keep them so within the block.

    Whatever fails, nothing of it is left at the source.  What is left at the destination ends
    with it.
    """
    if not moves:
        yield Along(end, None)
        return
    begun = trio.current_time()

    def tell(disks: tuple[Copying, ...]) -> None:
        told(copying_round(disks, trio.current_time() - begun, options.downtime))

    async with end.served(source) as door, mirroring(source, moves) as mirrors:
        await mirrors.start(door, options.max_bandwidth or 0)
        await mirrors.alike(tell)
        yield Along(end, mirrors)
