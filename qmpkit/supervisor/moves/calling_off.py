"""A move that ends when its machine is declared stopped: a stop is not to wait for minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from qmpkit.errors import MachineGone
from qmpkit.operations.migration.errors import MigrationFailed
from qmpkit.supervisor.kept import Kept

__all__ = ["called_off_by_stop"]


@contextmanager
def called_off_by_stop(
    kept: Kept, *, has_arrived: Callable[[], bool], at_once: Callable[[], object] | None = None
) -> Iterator[None]:
    """Within, a stop cancels what is done, and *at_once* is called by one without a grace.

    Raises MigrationFailed then, or MachineGone when it *has_arrived* all the same.
    """
    scope = trio.CancelScope()

    def call_off(grace: float) -> None:
        scope.cancel()
        if grace == 0 and at_once is not None:
            at_once()

    kept.call_off = call_off
    try:
        with scope:
            yield
    finally:
        kept.call_off = None
    if not scope.cancelled_caught:
        return
    if has_arrived():
        raise MachineGone(kept.name, "telling how it has migrated", kept.report)
    raise MigrationFailed(kept.name, "it was declared stopped while it moved", stopped=True)
