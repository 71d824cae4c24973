"""Stopping kept machines together: the last to start first, under one deadline."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

import attrs
import trio

from qmpkit.errors import MachineDied, MachineGone, QmpkitError
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.order import Needs, ready_to_stop
from qmpkit.supervisor.record import End

__all__ = ["Drained", "Told", "drain"]

log = logging.getLogger("qmpkit.supervisor")

Told = Callable[[str, int, int], object]
"""Called with the machine that is down, how many are, and how many are to be."""

Stop = Callable[[str, float | None], Awaitable[object]]


@attrs.frozen
class Drained:
    """How the stop of one machine went: its `end`, or `failure`, why it could not be stopped."""

    name: str
    end: End | None = None
    failure: QmpkitError | None = None


class _Drain:
    def __init__(self, machines: Mapping[str, Kept], names: Iterable[str], told: Told) -> None:
        self._machines = machines
        self.left = {name: machines[name] for name in names}
        self.done: dict[str, Drained] = {}
        self._told = told
        self._needs = {
            name: Needs(after=kept.record.after, requires=kept.record.requires)
            for name, kept in machines.items()
        }
        self._total = len(self.left)
        self._begun: set[str] = set()
        self._one_is_down = trio.Event()

    async def run(self, stop: Stop, grace: float | None, deadline: float) -> None:
        late = trio.current_time() + deadline
        async with trio.open_nursery() as nursery:
            while self.left:
                is_late = trio.current_time() >= late
                may = tuple(self.left) if is_late else ready_to_stop(self._needs, self.left).now
                for name in may:
                    if name not in self._begun:
                        self._begun.add(name)
                        nursery.start_soon(self._stop, name, stop, 0.0 if is_late else grace)
                if is_late:
                    nursery.start_soon(self._hurry)
                with trio.move_on_at(float("inf") if is_late else late):
                    await self._one_is_down.wait()
                    self._one_is_down = trio.Event()
                if is_late:
                    return

    async def _stop(self, name: str, stop: Stop, grace: float | None) -> None:
        """The one place where it is caught that a machine cannot be stopped."""
        kept = self.left[name]
        try:
            if self._machines.get(name) is kept:  # else it was down, and forgotten meanwhile
                await stop(name, grace)
            drained = Drained(name, end=kept.end)
        except QmpkitError as error:
            log.warning("machine %r could not be stopped: %s", name, error)
            drained = Drained(name, failure=error)
        self.done[name] = drained
        del self.left[name]
        self._told(name, len(self.done), self._total)
        self._one_is_down.set()

    async def _hurry(self) -> None:
        """The deadline has passed: end those whose guests still have a grace."""
        async with trio.open_nursery() as nursery:
            for kept in self.left.values():
                nursery.start_soon(_end, kept)


async def drain(
    machines: Mapping[str, Kept],
    names: Iterable[str],
    stop: Stop,
    *,
    grace: float | None,
    deadline: float,
    told: Told = lambda name, done, total: None,
) -> tuple[Drained, ...]:
    """Stop *names* of *machines* with *stop*, in the reverse of their order of start.

    As many as may stop at the same time, each guest with its *grace*; after *deadline*
    seconds all that are left are ended at once.  One that cannot be stopped is told
    of, and those that wait for it go on.  Cancelled, what was declared stays declared.
    """
    draining = _Drain(machines, names, told)
    await draining.run(stop, grace, deadline)
    return tuple(draining.done.values())


async def _end(kept: Kept) -> None:
    try:
        if kept.vm is not None:  # else it is ended by signals, being declared stopped
            await kept.vm.quit()
    except (MachineGone, MachineDied):
        return
    except QmpkitError as error:
        log.warning("machine %r could not be ended: %s", kept.name, error)
