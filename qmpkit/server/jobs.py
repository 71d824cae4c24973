"""Long operations: begun by one request, watched and cancelled by others."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import trio

from qmpkit.operations.jobs import JobProgress, Progress
from qmpkit.server.answers import Refused, error_body

__all__ = ["Job", "Jobs", "Step", "Work", "telling"]

log = logging.getLogger("qmpkit.server")

KEPT = 200
"""Jobs that are remembered when they have ended."""

_STEPS_KEPT = 10_000

Step = Callable[[dict[str, Any]], None]
"""Takes a step's description, and never blocks."""

Work = Callable[[Step], Awaitable[dict[str, Any]]]
"""What a job does; it gives its result."""


class Job:
    """One operation: `state`, its `steps` so far, and what came of it."""

    def __init__(self, what: str) -> None:
        self.id = secrets.token_hex(6)
        self.what = what
        self.state: Literal["running", "done", "failed", "cancelled"] = "running"
        self.steps: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.begun = time.time()
        self.scope = trio.CancelScope()
        self._changed = trio.Event()

    def to_dict(self) -> dict[str, Any]:
        """What the API tells of it."""
        last = self.steps[-1] if self.steps else None
        return {
            "job": self.id,
            "what": self.what,
            "state": self.state,
            "begun": self.begun,
            "step": last,
            "result": self.result,
            "error": self.error,
        }

    def step(self, step: dict[str, Any]) -> None:
        """One more step is done."""
        if len(self.steps) < _STEPS_KEPT:
            self.steps.append(step)
        self.changed()

    def changed(self) -> None:
        """Wake those who watch."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def watch(self, beat: float = float("inf")) -> AsyncIterator[dict[str, Any] | None]:
        """Every step from the first, until the job has ended; None when *beat* seconds pass."""
        seen = 0
        while True:
            changed = self._changed
            while seen < len(self.steps):
                seen += 1
                yield self.steps[seen - 1]
            if self.state != "running":
                return
            if changed is self._changed:
                with trio.move_on_after(beat) as silence:
                    await changed.wait()
                if silence.cancelled_caught:
                    yield None


class Jobs:
    """The jobs of a daemon, which end with it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._jobs: dict[str, Job] = {}

    def start(self, what: str, work: Work) -> Job:
        """Begin *work*; *what* says what it is."""
        job = Job(what)
        self._jobs[job.id] = job
        ended = [other.id for other in self._jobs.values() if other.state != "running"]
        for old in ended[: max(0, len(ended) - KEPT)]:
            del self._jobs[old]
        self._nursery.start_soon(_run, job, work, name=f"job {job.id}: {what}")
        return job

    def __getitem__(self, ident: str) -> Job:
        """Raises Refused when there is none."""
        try:
            return self._jobs[ident]
        except KeyError:
            raise Refused(f"there is no job {ident!r}", 404) from None

    def all(self) -> list[Job]:
        """The oldest first."""
        return list(self._jobs.values())


async def _run(job: Job, work: Work) -> None:
    """One job, and the place where its failure is caught."""
    try:
        with job.scope:
            job.result = await work(job.step)
        job.state = "cancelled" if job.scope.cancelled_caught else "done"
    except Exception as error:
        job.error = error_body(error)
        job.state = "failed"
        if not job.error["kinds"] or "bug" in job.error["message"]:
            log.exception("job %s (%s) failed", job.id, job.what)
    finally:
        if job.state == "running":
            job.state = "cancelled"
        job.changed()


def telling(step: Step) -> Progress:
    """Makes a step of what an operation tells of its way."""

    def told(progress: JobProgress) -> None:
        state = progress.state
        step(
            {
                "bytes": state.done,
                "of": state.total,
                "rate": progress.rate,
                "left": progress.left,
            }
        )

    return told
