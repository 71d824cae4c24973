"""The guest's memory on its way: followed pass by pass, and steered by a policy."""

from __future__ import annotations

from collections.abc import Callable

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
        self._status = "none"

    async def reached(self, wanted: str) -> None:
        """Follow it until it has this status; MigrationFailed when it fails, or is given up."""
        while self._status != wanted:
            self._status = await self._next_status()
            if self._status in _FAILED:
                self.is_broken = True
                raise await failure(self._source, self._status)
            if self._status == "active" and self.last is not None:
                await self._steer(self._policy(self.last))

    async def look(self) -> str:
        """Ask how far it is, and tell; its status."""
        told = await self._source.execute("query-migrate")
        seen = read_round(told, trio.current_time() - self._begun, self._downtime)
        if seen is not None:
            self.last = seen
            self._told(seen)
        return str(told.get("status", "none"))

    async def _next_status(self) -> str:
        """That of the next event, without asking: the guest may stand still meanwhile."""
        with trio.move_on_after(_EVERY):
            event = await self._changes.next()
            if event.name == "MIGRATION":
                return str(event.data["status"])
        return await self.look()

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
        status = (await changes.next()).data["status"]
        if status == "completed":
            return
        if status in _FAILED:
            raise await failure(destination, status)


async def failure(machine: Machine, status: str) -> MigrationFailed:
    """What has failed, in QEMU's words when it has some."""
    told = await machine.execute("query-migrate")
    return MigrationFailed(machine.name, str(told.get("error-desc") or status))
