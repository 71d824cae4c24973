"""A backup that is compared with the disks before it counts: with those of its own moment.

Nobody can ask a disk in use what it held then, so the moment is held (`fleece`) from the
transaction on that starts the copies, and read a second time once they are there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.backups.private_folder import SOCKET
from qmpkit.backups.repository import MOMENT, Repository, draft_of
from qmpkit.host.chain import walk_chain
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.backup_plan import Copy
from qmpkit.operations.block.fleece import Fleece, fleecing, going_on, listening, watched
from qmpkit.operations.errors import BackupDiffers
from qmpkit.operations.job_groups import JobGroup, job_group
from qmpkit.operations.jobs import JobState, Progress, progress_of
from qmpkit.process.tools import Completed
from qmpkit.qmp.events import Subscription

__all__ = ["Moment", "fleeces_of", "moment"]


def fleeces_of(machine: Changeable, place: Repository, copies: Sequence[Copy]) -> Iterator[Fleece]:
    """What holds the moment of each disk that is copied."""
    luks = {disk.id: disk.luks for disk in machine.spec.disks}
    folder = place.path(MOMENT)
    for it in copies:
        yield Fleece(it.disk, it.node, it.size, f"{it.target}-held", folder, luks[it.disk])


@attrs.frozen
class Moment:
    """The moment of a backup, which nobody holds when it has no *fleeces*; `moment` makes it."""

    machine: Changeable
    place: Repository
    errors: Subscription
    fleeces: tuple[Fleece, ...] = ()
    jobs: JobGroup | None = None

    @property
    def actions(self) -> list[dict[str, Any]]:
        """To be done in the transaction, before the copies are started."""
        return [it.action for it in self.fleeces]

    def held(self, copying: JobGroup) -> AbstractAsyncContextManager[None]:
        """The block fails as soon as the moment is lost, or a write of the guest fails by it.

        After the transaction; the block follows *copying*, the jobs of the copies, itself.
        """
        if self.jobs is None:
            return watched(copying, self.errors, follow=False)
        return watched(self.jobs, self.errors)

    async def compare(self, copies: Sequence[Copy], progress: Progress | None) -> None:
        """Read the disks a second time, and the layers, which QEMU has closed.

        Raises BackupDiffers.
        """
        if self.jobs is None:
            return
        told, since = 0, time.monotonic()
        total = sum(copy.size for copy in copies)
        socket = self.place.path(MOMENT) / SOCKET
        async with (
            watched(self.jobs, self.errors),
            listening(self.machine, socket, self.fleeces, {}),
        ):
            for copy, fleece in zip(copies, self.fleeces, strict=True):
                if progress is not None:
                    state = JobState("compare", "compare", "running", told, total)
                    progress(progress_of(state, since, 0, time.monotonic()))
                await self._compare(copy, fleece)
                told += copy.size

    async def _compare(self, copy: Copy, fleece: Fleece) -> None:
        layer = draft_of(self.place.path(copy.file))
        asked = Asked("compare with the disk", layer)
        depth = await trio.to_thread.run_sync(_depth, layer)
        words = ["compare", "-f", "qcow2", "-F", "raw", "--", str(layer), fleece.uri]
        done = await run_qemu_img(words, asked, limits_of_chain(depth), well=_compared)
        if not done.status.success:
            said = done.stdout.decode(errors="replace").strip()
            raise BackupDiffers(self.machine.name, copy.disk, str(self.place.folder), said)


def _depth(layer: Path) -> int:
    return len(walk_chain(layer, "qcow2").layers)


def _compared(done: Completed) -> bool:
    return done.status.code in (0, 1)


@asynccontextmanager
async def moment(
    machine: Changeable, place: Repository, fleeces: Sequence[Fleece]
) -> AsyncIterator[Moment]:
    """Hold the moment, from the transaction with `Moment.actions` to the block's end."""
    names = [it.job for it in fleeces]
    async with AsyncExitStack() as stack:
        if fleeces:
            await stack.enter_async_context(fleecing(machine, place.path(MOMENT), fleeces))
        await stack.enter_async_context(going_on(machine))
        # Before a job is ended: an error that comes by that is none.
        errors = machine.subscribe("BLOCK_IO_ERROR", where={"operation": "write"})
        it = Moment(machine, place, stack.enter_context(errors))
        if fleeces:
            holding = job_group(machine, names, asked="hold its disks for a comparison")
            jobs = await stack.enter_async_context(holding)
            it = attrs.evolve(it, fleeces=tuple(fleeces), jobs=jobs)
        yield it
