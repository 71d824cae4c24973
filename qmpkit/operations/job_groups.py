"""Several jobs that one transaction starts: followed together, and none of them left behind.

QEMU can bind such jobs to each other, but not in a transaction that also adds a dirty
bitmap: so it is done here that one which fails ends the others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from qmpkit.errors import MachineDied, MachineGone
from qmpkit.operations._protocols import Monitor
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.jobs import (
    DISCARD_GRACE,
    JobProgress,
    JobState,
    discard_job,
    jobs_of,
    progress_of,
)
from qmpkit.qmp.errors import CommandRefused, MonitorGarbled, MonitorLost
from qmpkit.qmp.events import Subscription

__all__ = ["JobGroup", "job_group"]


class JobGroup:
    """Jobs that are one thing; `job_group()` makes it.  For one task."""

    def __init__(
        self, machine: Monitor, ids: Sequence[str], asked: str, changes: Subscription
    ) -> None:
        self._machine = machine
        self._ids = tuple(ids)
        self._asked = asked
        self._changes = changes

    async def start(self, actions: Sequence[Mapping[str, Any]]) -> None:
        """Start all of them, in one moment; CommandRefused when QEMU starts none."""
        await self._machine.execute("transaction", {"actions": list(actions)})

    async def progress(self, every: float = 0.5) -> AsyncIterator[JobProgress]:
        """How far they are together, every so many seconds, until all have succeeded.

        Raises JobFailed as soon as one has not.
        """
        begun: tuple[float, int] | None = None
        while True:
            state, now = self._sum(await self._states()), trio.current_time()
            begun = begun or (now, state.done)
            yield progress_of(state, *begun, now)
            if state.status == "concluded":
                return
            with trio.move_on_after(every):
                await self._changes.next()

    async def reached(
        self, status: str, told: Callable[[Sequence[JobState]], object], every: float = 0.5
    ) -> None:
        """Wait until all have this status, "ready" or "concluded"; *told* of each look.

        Raises JobFailed as soon as one fails.
        """
        while True:
            states = await self._states()
            told(states)
            if all(state.status == status for state in states):
                return
            with trio.move_on_after(every):
                await self._changes.next()

    async def failed(self) -> None:
        """Never returns: raises JobFailed when one of them fails or is there no longer."""
        while True:
            await self._states()
            await self._changes.next()

    def broken(self, why: str) -> JobFailed:
        """The error for what is wrong with them and QEMU does not tell of."""
        return JobFailed(self._machine.name, self._ids[0], self._asked, why)

    async def _states(self) -> list[JobState]:
        known = {state.id: state for state in await jobs_of(self._machine)}
        for name in self._ids:
            why = known[name].error if name in known else "it is there no longer"
            if why is not None:
                raise JobFailed(self._machine.name, name, self._asked, why)
        return [known[name] for name in self._ids]

    def _sum(self, states: Sequence[JobState]) -> JobState:
        under_way = [state.status for state in states if state.status != "concluded"]
        return JobState(
            self._ids[0],
            states[0].type,
            under_way[0] if under_way else "concluded",
            sum(state.done for state in states),
            sum(state.total for state in states),
        )


@asynccontextmanager
async def job_group(machine: Monitor, ids: Sequence[str], *, asked: str) -> AsyncIterator[JobGroup]:
    """Jobs of these names, which `JobGroup.start` starts; *asked* is what they are for.

    However the block ends, none of them is there afterwards: those that still run are
    cancelled, also when a cancellation strikes while QEMU is being asked for them.
    """
    with machine.subscribe("JOB_STATUS_CHANGE") as changes:
        try:
            yield JobGroup(machine, ids, asked, changes)
        finally:
            with trio.move_on_after(DISCARD_GRACE, shield=True):
                with suppress(MachineGone, MachineDied, MonitorLost, MonitorGarbled):
                    await _discard(machine, ids)


async def _discard(machine: Monitor, ids: Sequence[str]) -> None:
    # All are told before one is waited for: a job that ends slowly must not hold up the others.
    running = [state.id for state in await jobs_of(machine) if state.status != "concluded"]
    for name in ids:
        if name in running:
            with suppress(CommandRefused):  # it has just concluded
                await machine.execute("job-cancel", {"id": name})
    for name in ids:
        await discard_job(machine, name)
