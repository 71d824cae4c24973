"""Cancel an operation at each of its checkpoints in turn."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

import trio

__all__ = ["cancel_at_every_checkpoint"]


async def cancel_at_every_checkpoint(
    async_fn: Callable[[], Awaitable[object]],
    *,
    every: int = 1,
    limit: int | None = None,
    after: Callable[[], object] | None = None,
) -> int:
    """Run *async_fn* again and again, cancelled one checkpoint later each time, until it ends.

    A checkpoint is where the function, or a task it has started, gives up
    control; the cancellation strikes right there.  *every* takes only each n-th
    checkpoint, *limit* ends after so many runs.  After each run, the last
    included, *after* (sync or async) checks that nothing was left behind.

    Returns how many runs were cancelled.  An exception of the function or of
    the check goes through, with the number of the checkpoint as a note.  A
    function that hangs after its cancellation hangs here: bound the test.
    """
    runs = 0
    while limit is None or runs < limit:
        checkpoint = 1 + runs * every
        try:
            struck = await _run_once(async_fn, checkpoint)
            await _check(after)
        except Exception as error:
            error.add_note(f"when cancelled at checkpoint {checkpoint}")
            raise
        if not struck:
            break
        runs += 1
    return runs


async def _run_once(async_fn: Callable[[], Awaitable[object]], checkpoint: int) -> bool:
    """Run once, cancelled at *checkpoint*; False when it ended before."""
    with trio.CancelScope() as scope:
        striker = _Striker(trio.lowlevel.current_task(), checkpoint, scope)
        trio.lowlevel.add_instrument(striker)
        try:
            await async_fn()
        finally:
            striker.disarm()
            trio.lowlevel.remove_instrument(striker)
    return scope.cancel_called


async def _check(after: Callable[[], object] | None) -> None:
    if after is not None:
        result = after()
        if inspect.isawaitable(result):
            await result


class _Striker(trio.abc.Instrument):
    """Counts the steps of a task and of those it starts, and cancels at the n-th."""

    def __init__(self, task: trio.lowlevel.Task, step: int, scope: trio.CancelScope) -> None:
        self._tasks = {task}
        self._left = step
        self._scope = scope

    def disarm(self) -> None:
        self._tasks.clear()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        if nursery is not None and nursery.parent_task in self._tasks:
            self._tasks.add(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task not in self._tasks:
            return
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()
