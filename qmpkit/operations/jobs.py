"""QEMU's jobs: started, followed and steered, and none left behind.

A job is made with `auto-dismiss` off, so that its verdict stays until somebody has read it.
A fast one has concluded before its command returns: whoever waits has subscribed before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import trio

from qmpkit.errors import MachineDied, MachineGone
from qmpkit.operations._protocols import Monitor
from qmpkit.operations.errors import JobFailed
from qmpkit.qmp.errors import CommandRefused, MonitorGarbled, MonitorLost
from qmpkit.qmp.events import Subscription
from qmpkit.spec.names import job_id

__all__ = [
    "Job",
    "JobProgress",
    "JobState",
    "Progress",
    "discard_job",
    "follow",
    "free_job_id",
    "job",
    "jobs_of",
    "progress_of",
]

DISCARD_GRACE = 30.0
"""Seconds that taking a job back may take: one that is in a slow disk ends after its request."""

# Jobs that stay until they are dismissed, without being told so.
_NEVER_DISMISSED = ("snapshot-", "blockdev-create")
_ENDED = ("concluded", "null")
_REST = ("concluded", "null", "pending")


@attrs.frozen
class JobState:
    """What QEMU tells of a job (`query-jobs`).

    `done` of `total` is in bytes for block jobs, and `total` may grow while the guest writes.
    `error` is set when it has failed or was cancelled.
    """

    id: str
    type: str
    status: str
    done: int
    total: int
    error: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> JobState:
        """One item of the reply to `query-jobs`."""
        done, total = told["current-progress"], told["total-progress"]
        return cls(told["id"], told["type"], told["status"], done, total, told.get("error"))

    @property
    def fraction(self) -> float:
        """From 0.0 to 1.0."""
        return min(self.done / self.total, 1.0) if self.total else 0.0


@attrs.frozen
class JobProgress:
    """How far a job is: `rate` in bytes a second, `left` in seconds, None before they are known."""

    state: JobState
    rate: float | None = None
    left: float | None = None


async def jobs_of(machine: Monitor) -> list[JobState]:
    """Every job that this QEMU has, also those that nobody here has started."""
    return [JobState.of(told) for told in await machine.execute("query-jobs")]


async def _state_of(machine: Monitor, job_id: str) -> JobState | None:
    return next((state for state in await jobs_of(machine) if state.id == job_id), None)


class Job:
    """A job that is under way; `job()` makes it.  For one task at a time.

    `left`: it is not to be cancelled, for what it has come to is unknown and must not be torn.
    """

    def __init__(self, machine: Monitor, job_id: str, asked: str, changes: Subscription) -> None:
        self.id = job_id
        self.left = False
        self._machine = machine
        self._asked = asked
        self._changes = changes

    def __repr__(self) -> str:
        return f"<Job {self.id} of {self._machine.name!r}>"

    async def state(self) -> JobState:
        """What it is doing; JobFailed when it is there no longer."""
        state = await _state_of(self._machine, self.id)
        if state is None:
            raise self._failed("it is there no longer")
        return state

    async def reached(self, *statuses: str) -> JobState:
        """Wait until it is in one of these states ("ready", "pending", "concluded").

        Raises `JobFailed` when it ends in another way than by succeeding.
        """
        while True:
            state = await self.state()
            if state.error is not None:
                raise self._failed(state.error)
            if state.status in statuses:
                return state
            if state.status in _ENDED:
                raise self._failed(f"it ended before it was {' or '.join(statuses)}")
            await self._changes.next()

    async def ended(self) -> JobState:
        """Wait for its end; JobFailed unless it succeeds."""
        return await self.reached("concluded")

    async def progress(self, every: float = 0.5) -> AsyncIterator[JobProgress]:
        """How far it is, every so many seconds and at each change, until it rests or is ready."""
        begun: tuple[float, int] | None = None
        while True:
            state, now = await self.state(), trio.current_time()
            begun = begun or (now, state.done)
            yield progress_of(state, *begun, now)
            if state.status in (*_REST, "ready"):
                return
            with trio.move_on_after(every):
                await self._changes.next()

    async def pause(self) -> None:
        """Let it rest (`job-pause`), until `resume`."""
        await self._machine.execute("job-pause", {"id": self.id})

    async def resume(self) -> None:
        """Let it go on (`job-resume`)."""
        await self._machine.execute("job-resume", {"id": self.id})

    async def limit(self, speed: int) -> None:
        """Bytes a second that it may move from now on (`block-job-set-speed`); 0: all it can."""
        await self._machine.execute("block-job-set-speed", {"device": self.id, "speed": speed})

    async def complete(self) -> None:
        """Have a job that is ready do its last step (`job-complete`)."""
        await self._machine.execute("job-complete", {"id": self.id})

    async def finalize(self) -> None:
        """Let a job that is pending change what it is for (`job-finalize`)."""
        await self._machine.execute("job-finalize", {"id": self.id})

    def _failed(self, why: str) -> JobFailed:
        return JobFailed(self._machine.name, self.id, self._asked, why)


def progress_of(state: JobState, since: float, at_first: int, now: float) -> JobProgress:
    """How far a job is that had done *at_first* at the time *since*."""
    if now <= since or state.done <= at_first:
        return JobProgress(state)
    rate = (state.done - at_first) / (now - since)
    return JobProgress(state, rate, max(state.total - state.done, 0) / rate)


@asynccontextmanager
async def job(
    machine: Monitor,
    command: str,
    arguments: Mapping[str, Any],
    *,
    id: str,
    asked: str,
    finalize: bool = True,
) -> AsyncIterator[Job]:
    """Start a job with *command*; *asked* is what it is for, in words, for messages.

    Without *finalize* it waits as "pending" before it changes anything, until
    `Job.finalize`.  Leaving the block waits for its success; when the block fails or is
    cancelled the job is cancelled.  In every case it is gone afterwards, also when a
    cancellation strikes while QEMU is being asked for it.

    Raises `CommandRefused` when QEMU does not begin, `JobFailed` when the job fails.
    """
    with machine.subscribe("JOB_STATUS_CHANGE", where={"id": id}) as changes:
        started = Job(machine, id, asked, changes)
        try:
            words = {"job-id": id, **arguments}
            if not command.startswith(_NEVER_DISMISSED):
                words["auto-dismiss"] = False
            if not finalize:
                words["auto-finalize"] = False
            await machine.execute(command, words)
            yield started
            await started.ended()
        finally:
            if not started.left:
                with trio.move_on_after(DISCARD_GRACE, shield=True):
                    with suppress(MachineGone, MachineDied, MonitorLost, MonitorGarbled):
                        await discard_job(machine, id, changes)


async def discard_job(machine: Monitor, job_id: str, changes: Subscription | None = None) -> None:
    """End a job, whatever it is doing, and take it off QEMU's list; none of that name is fine.

    *changes*: who has subscribed to its JOB_STATUS_CHANGE before.
    """
    if changes is None:
        with machine.subscribe("JOB_STATUS_CHANGE", where={"id": job_id}) as changes:
            return await discard_job(machine, job_id, changes)
    cancelled = False
    while (state := await _state_of(machine, job_id)) is not None:
        if state.status == "concluded":
            # Another may have dismissed it in this moment.
            with suppress(CommandRefused):
                await machine.execute("job-dismiss", {"id": job_id})
        elif not cancelled:
            cancelled = True
            with suppress(CommandRefused):  # it has just concluded, or is about to
                await machine.execute("job-cancel", {"id": job_id})
        else:
            await changes.next()
    return None


Progress = Callable[[JobProgress], object]
"""Is told how far a job is, about twice a second; must not block."""


async def follow(running: Job, progress: Progress | None) -> None:
    """Tell of the job's way until it is ready or rests."""
    async for state in running.progress():
        if progress is not None:
            progress(state)


async def free_job_id(machine: Monitor, kind: str, subject: str) -> str:
    """A name for a job that no job of this QEMU has."""
    taken = {state.id for state in await jobs_of(machine)}
    number = 1
    while (name := job_id(kind, subject, number)) in taken:
        number += 1
    return name
