"""The guest's memory on its way: followed pass by pass, and steered by a policy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from qmpkit._trio import raise_failed
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import is_stuck
from qmpkit.operations.migration.convergence import Policy, Round, Step, is_switched, read_round
from qmpkit.operations.migration.errors import MigrationFailed
from qmpkit.operations.migration.parameters import downtime_parameter
from qmpkit.operations.power import stand
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Event, Subscription

__all__ = ["EVENTS", "LAST_WORDS", "Told", "Transfer", "loaded", "sent_by"]

EVENTS = ("MIGRATION", "MIGRATION_PASS", "STOP", "RESUME")
Told = Callable[[Round], object]
"""Is called with each look at a migration, at least twice a second; must not block."""

LAST_WORDS = 2.0
"""Seconds that one end is given to say what it knows, when the other has failed, or ended."""

_EVERY = 0.5
_LAST_PASS = 0.005
"""Seconds in which a pass turns out to be the last: asked then, QEMU would switch over later."""
_FAILED = ("failed", "cancelled")
_SENDING = ("none", "setup", "active")


class Transfer:
    """What the source sends; `last` is where that was when it was last looked at.

    `is_broken`: the source says that it has failed.  `postcopies`: it is to switch to postcopy.
    `is_quiet`: nobody is told, who might fail.
    """

    def __init__(
        self, source: Machine, changes: Subscription, policy: Policy, downtime: float, told: Told
    ) -> None:
        self.postcopies = False
        self.is_quiet = False
        self.last: Round | None = None
        self.is_broken = False
        self._source = source
        self._changes = changes
        self._policy = policy
        self._downtime = downtime
        self._told = told
        self._begun = trio.current_time()
        self._halted = False
        self._stands = False
        self._status = "none"

    async def reached(self, *wanted: str) -> str:
        """Follow it until it has one of these statuses, and tell which.

        MigrationFailed when it fails, or is given up.
        """
        while self._status not in wanted:
            before = self.last
            self._status = await self._next_status()
            if self._status in _FAILED:
                self.is_broken = True
                raise await failure(self._source, self._status)
            if self.last is None or self.last is before:
                continue
            if self._status == "active":
                await self._steer(self._policy(self.last))
            elif not self.postcopies:  # it was over before it was asked
                self._give_up_if(self._policy(self.last))
        return self._status

    async def look(self) -> str:
        """Ask how far it is, and tell; its status."""
        told = await self._source.execute("query-migrate")
        seen = read_round(told, trio.current_time() - self._begun, self._downtime)
        if seen is not None:
            if is_switched(self._status) and seen.phase == "precopy":  # it has completed
                seen = attrs.evolve(seen, phase="postcopy")
            self.last = seen
            if not self.is_quiet:
                self._told(seen)
        return "failed" if is_stuck(told) else str(told.get("status", "none"))

    async def _next_status(self) -> str:
        """That of the next event; it is asked for when none tells, and the guest may run."""
        now = trio.current_time()
        until = latest = now + _EVERY
        while (event := await self._next_event(until)) is not None:
            if event.name == "MIGRATION":
                status = str(event.data["status"])
                if status == "active" and self.last is None:
                    break  # however soon it is over, its policy is asked
                if until == latest or status not in _SENDING:
                    return status
                self._status = status
            elif event.name in ("STOP", "RESUME"):  # its owner may pause it, and have it go on
                self._stands = event.name == "STOP"
                until = latest = trio.current_time() + _EVERY
            elif self._status in _SENDING and not self._stands:
                if until != latest:
                    break
                until = min(trio.current_time() + _LAST_PASS, latest)
        return await self.look()

    async def _next_event(self, until: float) -> Event | None:
        with trio.move_on_at(until):
            return await _next(self._changes)
        return None

    def _give_up_if(self, step: Step) -> None:
        if not isinstance(step, Step):  # a policy may be anybody's
            why = f"its policy has to return a qmpkit.Step, and has returned {step!r}"
            raise MigrationFailed(self._source.name, why)
        if step.give_up:
            raise MigrationFailed(self._source.name, step.give_up)

    async def _steer(self, step: Step) -> None:
        self._give_up_if(step)
        if step.downtime is not None and step.downtime != self._downtime:
            self._downtime = step.downtime
            await self._source.execute("migrate-set-parameters", downtime_parameter(step.downtime))
        stands = self._stands or self._source.halted  # so it is over soon by itself
        if step.postcopy and not self.postcopies and not stands:
            self.postcopies = True
            await self._start_postcopy()
        if step.paused and not self._halted:
            self._halted = True
            await stand(self._source)

    async def _start_postcopy(self) -> None:
        try:
            await self._source.execute("migrate-start-postcopy")
        except CommandRefused as refused:
            cure = "give your policy to `qmpkit.postcopy`, which prepares for it"
            raise MigrationFailed(self._source.name, f"{refused.desc} ({cure})") from refused


@asynccontextmanager
async def sent_by(source: Machine) -> AsyncIterator[trio.Event]:
    """Wait within for what comes from *source*: when that has ended, not for long any more.

    MachineGone or MachineDied then.  What is given is to be set when all is there.
    """
    there = trio.Event()

    async def give_up() -> None:
        await source.wait()
        await trio.sleep(LAST_WORDS)
        if not there.is_set():
            source.must_live("migrating")

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            yield there
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # what failed while it could not be cancelled tells more
        raise_failed(group)


async def loaded(destination: Machine, changes: Subscription) -> None:
    """Wait until the destination has it all; MigrationFailed with its reason when it cannot.

    A QEMU that does not like what it reads ends, so MachineDied and MachineGone too.
    """
    while True:
        status = (await _next(changes)).data["status"]
        if status == "completed":
            return
        if status in _FAILED:
            raise await failure(destination, status)


async def _next(changes: Subscription) -> Event:
    """The next one, without a turn of the loop when it is there: a guest stands still."""
    known = changes.next_nowait() if changes.has_news else None
    return await changes.next() if known is None else known


async def failure(machine: Machine, status: str) -> MigrationFailed:
    """What has failed, in QEMU's words when it has some."""
    told = await machine.execute("query-migrate")
    return MigrationFailed(machine.name, str(told.get("error-desc") or status))
