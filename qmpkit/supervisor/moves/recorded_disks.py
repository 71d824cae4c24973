"""The disks that go along with a kept machine: on record before they are made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.migration.storage import DiskMove, with_moves
from qmpkit.operations.migration.storage_there import NewImages, new_images
from qmpkit.operations.undertaking import Undertaking, undertaking

__all__ = ["images_on_record", "mirrors_on_record"]


@asynccontextmanager
async def images_on_record(
    machine: Changeable, moves: Sequence[DiskMove]
) -> AsyncIterator[tuple[NewImages, Undertaking | None]]:
    """Make the new images; whoever dies, the next supervisor removes what nobody needs.

    Once the mirrors have ended, the record says that the new ones are right, if they are there.
    """
    if not moves:
        yield NewImages(), None
        return
    change = Change(
        what="move with its disks to another process",
        spec=with_moves(machine.spec, moves),
        begun=machine.spec,
        jobs=tuple(move.job for move in moves),
        nodes=tuple(move.target for move in moves),
        files=tuple(move.disk.file for move in moves),
    )
    async with undertaking(machine, change) as it, new_images(moves) as images:
        await it.made(images.placed)
        yield images, it


@asynccontextmanager
async def mirrors_on_record(
    machine: Changeable, moves: Sequence[DiskMove], place: object
) -> AsyncIterator[None]:
    """For a move to another supervisor, which makes the images: what is here is taken away."""
    if not moves:
        yield
        return
    change = Change(
        what=f"move with its disks to {place}",
        spec=machine.spec,
        begun=machine.spec,
        jobs=tuple(move.job for move in moves),
        nodes=tuple(move.target for move in moves),
    )
    async with undertaking(machine, change):
        yield
