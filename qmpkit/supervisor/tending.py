"""The tasks that stay with kept machines, one each: the place where a failure is caught."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from qmpkit._trio import in_thread
from qmpkit.errors import cause_of
from qmpkit.host.resolve import Resolution
from qmpkit.process.kept import trim_log
from qmpkit.supervisor.adopt import found
from qmpkit.supervisor.errors import LeftAlone
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means, attempt, comes_again, started
from qmpkit.supervisor.moves.departures import settled
from qmpkit.supervisor.record import End

__all__ = ["Life", "Tending", "trim_logs"]

log = logging.getLogger("qmpkit.supervisor")

Life = Callable[[trio.TaskStatus[None]], Awaitable[None]]
"""A machine's life from one point on; its status is set when it is in other hands than ours."""


_TRIM_EVERY = 60.0


class _Status:
    """Tells once that a life is in other hands, however often it is told."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self.handed_over = False
        self._task_status = task_status

    def started(self, value: None = None) -> None:
        if not self.handed_over:
            self.handed_over = True
            self._task_status.started()


class Tending:
    """Makes the lives of kept machines, by the same means for all, and their tasks in *nursery*."""

    def __init__(self, means: Means, nursery: trio.Nursery) -> None:
        self._means = means
        self._nursery = nursery
        self._beginning: set[trio.CancelScope] = set()

    async def begin(self, kept: Kept, life: Life) -> None:
        """Have a task tend it from here on; returns when that is in other hands than ours.

        Raises LeftAlone when the supervisor ends before; then it is as when cancelled.
        """
        with trio.CancelScope() as scope:
            if self._nursery.cancel_scope.cancel_called:
                scope.cancel()
            self._beginning.add(scope)
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
                await self._nursery.start(self._tend, kept, life)
            finally:
                self._beginning.discard(scope)
        if scope.cancelled_caught:
            raise LeftAlone(kept.name, "is up")

    def end(self) -> None:
        """Leave all machines as they are; those that are only being started are taken back.

        Whoever starts one may outlive the supervisor, which must not wait for it.
        """
        for scope in self._beginning:
            scope.cancel()
        self._nursery.cancel_scope.cancel()

    async def _tend(self, kept: Kept, life: Life, task_status: trio.TaskStatus[None]) -> None:
        """One kept machine, start to rest.  The one place where its failure is caught."""
        status = _Status(task_status)
        kept.tended = True
        try:
            await life(status)
        except Exception as error:
            if not status.handed_over:
                raise
            # Also what is no error of ours: the siblings are not to pay for it.
            log.exception("machine %r failed, and is left as it is", kept.name)
            kept.refusal = error  # of whoever waits for it to be as declared
            kept.enter("failed", cause_of(error))
        except BaseException:  # of cancellations there may be a group
            kept.is_alone = status.handed_over
            raise
        finally:
            kept.tended = False
            kept.notify()

    def first(self, kept: Kept, resolution: Resolution | None) -> Life:
        """It starts for somebody who waits for that, and who is told of a failure."""

        async def life(task_status: trio.TaskStatus[None]) -> None:
            async def hand_over() -> None:
                task_status.started()
                # Had the caller been cancelled at this moment, it strikes here, and the
                # machine is taken down again.
                await trio.lowlevel.checkpoint_if_cancelled()

            end = await started(kept, self._means, resolution, hand_over)
            await self._from(kept, end, task_status.started)

        return life

    def enlisted(self, kept: Kept) -> Life:
        """It starts for nobody in particular: a failure is an end like others."""

        async def life(task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await self._from(kept, await attempt(kept, self._means), task_status.started)

        return life

    def resumed(self, kept: Kept) -> Life:
        """It goes on from what its record says."""

        async def life(task_status: trio.TaskStatus[None]) -> None:
            end = await found(kept, self._means, task_status.started)
            task_status.started()
            await self._from(kept, end, task_status.started)

        return life

    async def _from(self, kept: Kept, end: End | None, seen: Callable[[], None]) -> None:
        while True:
            if end is None:  # QEMU lives and its monitor was lost
                end = await found(kept, self._means, seen)
            elif kept.record.leaving is not None:  # it may run elsewhere
                await settled(kept, self._means, seen)
            if kept.has_left:
                kept.enter("gone", "it is with another supervisor")
                return
            if not await comes_again(kept, self._means, end):
                return
            end = await attempt(kept, self._means)


async def trim_logs(machines: Mapping[str, Kept]) -> None:
    """Keep bounded what their QEMUs write themselves, for ever."""
    while True:
        await trio.sleep(_TRIM_EVERY)
        files = [kept.home.stderr for kept in machines.values()]
        with suppress(OSError):  # the next time, then
            await in_thread(partial(_trim_all, files))


def _trim_all(files: list[Path]) -> None:
    for file in files:
        trim_log(file)
