"""The source's part of moving disks along: a mirror of each, alike when the guest changes over.

A mirror writes what the guest writes at both ends before the guest is told that it is
written ("write-blocking"), so it comes to an end however much the guest writes.  It is ended,
without a change of place, while the guest stands still and before its memory has left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from qmpkit.operations._protocols import Monitor
from qmpkit.operations.block.layers import remove_nodes
from qmpkit.operations.job_groups import JobGroup, job_group
from qmpkit.operations.jobs import JobState
from qmpkit.operations.migration.convergence import Copying
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.storage_there import Door
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.qmp.errors import CommandRefused

__all__ = ["Mirrors", "mirroring", "set_bitmaps"]

_ASKED = "move its disks along"


class Mirrors:
    """Those of one migration; `mirroring` makes it."""

    def __init__(self, source: Monitor, moves: Sequence[DiskMove], jobs: JobGroup) -> None:
        self._source = source
        self._moves = moves
        self._jobs = jobs

    async def start(self, door: Door, speed: int) -> None:
        """Start all of them, at *speed* bytes a second together, 0: as fast as it goes."""
        for move in self._moves:
            await self._source.execute("blockdev-add", _served(move, door))
        each = max(speed // len(self._moves), 1) if speed else 0
        for move in self._moves:
            await self._source.execute("blockdev-mirror", _mirror(move, each))

    async def alike(self, told: Callable[[tuple[Copying, ...]], object]) -> None:
        """Wait until both ends of all are alike; JobFailed when one fails."""

        def tell(states: Sequence[JobState]) -> None:
            pairs = zip(self._moves, states, strict=True)
            told(tuple(Copying(move.id, state.done, state.total) for move, state in pairs))

        await self._jobs.reached("ready", tell)

    async def settle(self) -> None:
        """End them, with both ends alike; the guest stands still.

        JobFailed when one has failed since: then its image there is of no use.
        """
        for move in self._moves:
            words = {"device": move.job, "force": False}
            with suppress(CommandRefused):  # it has ended: of what, is told next
                await self._source.execute("block-job-cancel", words)
        await self._jobs.reached("concluded", lambda _: None)
        for move in self._moves:
            await self._source.execute("job-dismiss", {"id": move.job})
            await self._source.execute("blockdev-del", {"node-name": move.target})

    async def cut(self) -> None:
        """Have them fail at once, the guest's writes go on, and QEMU too.

        A destination that hangs would hold up all three: QEMU itself while it stops the guest.
        """
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
            for move in self._moves:
                words = {"type": "block-node", "node-name": move.target}
                with suppress(CommandRefused):  # there is none yet, or none any more
                    await self._source.execute("yank", {"instances": [words]}, oob=True)


@asynccontextmanager
async def mirroring(source: Monitor, moves: Sequence[DiskMove]) -> AsyncIterator[Mirrors]:
    """However the block ends, no mirror is at the source, and no node of one."""
    ids = [move.job for move in moves]
    try:
        async with job_group(source, ids, asked=_ASKED) as jobs:
            mirrors = Mirrors(source, moves, jobs)
            try:
                yield mirrors
            except BaseException:
                await mirrors.cut()
                raise
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
            await remove_nodes(source, (move.target for move in moves))


def _served(move: DiskMove, door: Door) -> dict[str, Any]:
    words: dict[str, Any] = {"driver": "nbd", "node-name": move.target, "export": move.id}
    if door.tls:
        words["tls-creds"] = door.tls
    # Zeroes take no space there: neither those that are copied, nor those it begins with.
    return {**words, "server": dict(door.server), "discard": "unmap", "detect-zeroes": "unmap"}


def _mirror(move: DiskMove, speed: int) -> dict[str, Any]:
    return {
        "job-id": move.job,
        "device": move.source,
        "target": move.target,
        "sync": "full" if move.base is None else "top",
        "copy-mode": "write-blocking",
        "speed": speed,
        "auto-dismiss": False,
    }


async def set_bitmaps(
    machine: Monitor, moves: Sequence[DiskMove], nodes: Mapping[str, str]
) -> None:
    """Say which dirty bitmaps go along with their disks (`block-bitmap-mapping`), at one end.

    *nodes*: those of the disks there.  Without any, nothing is said, and none go.
    """
    mapping = [
        {
            "node-name": nodes[move.id],
            "alias": move.id,
            "bitmaps": [{"name": name, "alias": name} for name in move.bitmaps],
        }
        for move in moves
        if move.bitmaps
    ]
    if mapping:
        await machine.execute("migrate-set-parameters", {"block-bitmap-mapping": mapping})
