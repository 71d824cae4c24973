"""The turn of whoever changes a machine: one at a time, and none while it moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from qmpkit.errors import MachineMoving

__all__ = ["Turn"]


class Turn:
    """`async with turn:` waits for the changes that were asked for before.

    Not for a move, which may take hours, after which there is nothing to change here:
    MachineMoving then, also while the move itself waits for its turn.
    """

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._lock = trio.Lock()
        self._place: str | None = None

    async def __aenter__(self) -> None:
        self.must_stay()
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()

    def locked(self) -> bool:
        """Whether somebody changes it now."""
        return self._lock.locked()

    def must_stay(self) -> None:
        """Raise MachineMoving when it moves, or is about to."""
        if self._place is not None:
            raise MachineMoving(self._machine, self._place)

    @asynccontextmanager
    async def moving(self, place: str) -> AsyncIterator[None]:
        """The turn of a move to *place*, for messages; MachineMoving when there is one already."""
        self.must_stay()
        self._place = place
        try:
            async with self._lock:
                yield
        finally:
            self._place = None

    @asynccontextmanager
    async def after_all(self) -> AsyncIterator[None]:
        """The turn of what has happened, and nobody has asked for: it waits for a move too."""
        async with self._lock:
            yield
