"""The guest's memory on its way: followed pass by pass, and steered by a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import trio

from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.convergence import Policy, Round, Step, read_round
from qmpkit.operations.migration.errors import MigrationFailed
from qmpkit.operations.migration.parameters import downtime_parameter
from qmpkit.operations.power import pause
from qmpkit.qmp.events import Subscription

__all__ = ["EVENTS", "Told", "Transfer", "loaded"]

EVENTS = ("MIGRATION", "MIGRATION_PASS")
Told = Callable[[Round], object]
"""Is called with each look at a migration, at least twice a second; must not block."""

_EVERY = 0.5
_FAILED = ("failed", "cancelled")


class Transfer:
    """What the source sends; `last` is where that was when it was last looked at.

    `is_broken`: the source says that it has failed.
    """

    def __init__(
        self, source: Machine, changes: Subscription, policy: Policy, downtime: float, told: Told
    ) -> None:
        self.last: Round | None = None
        self.is_broken = False
        self._source = source
        self._changes = changes
        self._policy = policy
        self._downtime = downtime
        self._told = told
        self._begun = trio.current_time()
        self._halted = False

    async def reached(self, wanted: str) -> None:
        """Follow it until it has this status; MigrationFailed when it fails, or is given up."""
        while True:
            told = await self._source.execute("query-migrate")
            self._look(told)
            status = told.get("status", "none")
            if status == wanted:
                return
            if status in _FAILED:
                self.is_broken = True
                raise MigrationFailed(self._source.name, str(told.get("error-desc") or status))
            if status == "active" and self.last is not None:
                await self._steer(self._policy(self.last))
            with trio.move_on_after(_EVERY):
                await self._changes.next()

    def _look(self, told: Mapping[str, Any]) -> None:
        seen = read_round(told, trio.current_time() - self._begun, self._downtime)
        if seen is not None:
            self.last = seen
            self._told(seen)

    async def _steer(self, step: Step) -> None:
        if step.give_up:
            raise MigrationFailed(self._source.name, step.give_up)
        if step.downtime is not None and step.downtime != self._downtime:
            self._downtime = step.downtime
            await self._source.execute("migrate-set-parameters", downtime_parameter(step.downtime))
        if step.paused and not self._halted:
            self._halted = True
            await pause(self._source)


async def loaded(destination: Machine, changes: Subscription) -> None:
    """Wait until the destination has it all; MigrationFailed with its reason when it cannot.

    A QEMU that does not like what it reads ends, so MachineDied and MachineGone too.
    """
    while True:
        told = await destination.execute("query-migrate")
        status = told.get("status", "none")
        if status == "completed":
            return
        if status in _FAILED:
            raise MigrationFailed(destination.name, str(told.get("error-desc") or status))
        await changes.next()
