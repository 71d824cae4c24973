"""Watching over a living machine: its checks, its watchdog, what QEMU gave up on."""

from __future__ import annotations

import logging
import time
from contextlib import suppress

import trio

from qmpkit.errors import MachineDied, MachineGone, QmpkitError
from qmpkit.machine.state import State
from qmpkit.process.identity import boot_id
from qmpkit.qmp.errors import EventsLost
from qmpkit.qmp.events import Event, Subscription
from qmpkit.spec.health import Check, ConsoleCheck, Health
from qmpkit.supervisor.checks import checked
from qmpkit.supervisor.health import Healthy, Result, Starting, Unhealthy, Verdict, Vitals
from qmpkit.supervisor.journal import Journal
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.record import End
from qmpkit.vm import VM

__all__ = ["make_checks", "notice_mishaps", "put_down"]

log = logging.getLogger("qmpkit.supervisor")

_WORDS: dict[type[Verdict], str] = {
    Starting: "checked",
    Healthy: "healthy",
    Unhealthy: "unhealthy",
}


async def make_checks(kept: Kept, journal: Journal, vm: VM) -> None:
    """Make the machine's checks, as long as its record has some, and end it when they fail."""
    while True:
        await kept.until(lambda: kept.record.health is not None)
        assert kept.record.health is not None
        await _check(kept, journal, vm, kept.record.health)


async def _check(kept: Kept, journal: Journal, vm: VM, health: Health) -> None:
    """Make its checks until its record has others."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_Watch(kept, journal, vm, health).run)
        await kept.until(lambda: kept.record.health != health)
        kept.health = None
        nursery.cancel_scope.cancel()


class _Watch:
    """The checks of one machine."""

    def __init__(self, kept: Kept, journal: Journal, vm: VM, health: Health) -> None:
        self._kept = kept
        self._journal = journal
        self._vm = vm
        self._health = health
        self._vitals = Vitals(health, vm.machine.started_at)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._take_in()
            for check in self._health.checks:
                nursery.start_soon(self._repeat, check)

    async def _repeat(self, check: Check) -> None:
        """One check, again and again; a guest that stands still is not asked."""
        while True:
            await trio.sleep_until(self._vitals.due()[str(check)])
            await self._kept.until(lambda: self._kept.state == State.RUNNING.value)
            why = await self._failure(check)
            result = Result(str(check), trio.current_time(), not why, why)
            self._vitals = self._vitals.told(result)
            if self._take_in() and await self._is_put_down():
                return
            if isinstance(check, ConsoleCheck) and not why:
                return  # passed once, for good

    async def _failure(self, check: Check) -> str:
        """Why the check fails; empty when it passes."""
        if isinstance(check, ConsoleCheck) and self._kept.adopted:
            return ""  # what it said while nobody listened cannot be known, and it was up before
        with trio.move_on_after(self._health.timeout) as bound:
            try:
                await checked(check, self._vm)
            except (MachineGone, MachineDied):
                await trio.sleep_forever()  # whoever attends to it sees the end
            except QmpkitError as error:
                return str(error)
        return f"no answer within {self._health.timeout:g} s" if bound.cancelled_caught else ""

    def _take_in(self) -> bool:
        """Tell of a verdict that has changed; whether it has."""
        before, verdict = self._kept.health, self._vitals.verdict
        self._kept.health = verdict
        if type(before) is type(verdict):
            return False
        if not isinstance(verdict, Starting):
            why = verdict.why if isinstance(verdict, Unhealthy) else "all its checks pass"
            self._kept.tell(_WORDS[type(verdict)], why)
        self._kept.notify()
        return True

    async def _is_put_down(self) -> bool:
        verdict = self._kept.health
        if not isinstance(verdict, Unhealthy) or not self._health.restart:
            return False
        if self._kept.restart.policy == "never":
            return False
        why = f"it was unhealthy: {verdict.why}"
        await put_down(self._kept, self._journal, self._vm, Mishap.UNHEALTHY, why)
        return True


async def put_down(kept: Kept, journal: Journal, vm: VM, cause: Mishap, why: str) -> None:
    """End a machine that is of no use any more; why is written down first."""
    uptime = trio.current_time() - vm.machine.started_at
    kept.note(phase="ending", end=End(cause, why, uptime, time.time(), boot_id()))
    await kept.write(journal)
    try:
        await vm.quit()
    except (MachineGone, MachineDied):
        return
    except QmpkitError:
        log.exception("machine %r could not be ended", kept.name)


async def notice_mishaps(kept: Kept, journal: Journal, vm: VM) -> None:
    """End the machine when its guest does not feed its watchdog, or QEMU gave up running it."""
    mishap, looks = None, not _as_left(kept, vm)
    try:
        while mishap is None:
            with suppress(EventsLost), vm.subscribe("WATCHDOG", "STOP") as events:
                mishap = await _next_mishap(events, kept, vm, looks)
            looks = True  # what was lost may have been one
        await put_down(kept, journal, vm, *mishap)
    except QmpkitError:
        return  # its end, or its monitor's, is somebody else's matter


async def _next_mishap(events: Subscription, kept: Kept, vm: VM, looks: bool) -> tuple[Mishap, str]:
    """The first there is; without *looks* not before an event."""
    if not looks:
        await _next(events, kept)
    while (mishap := await _mishap(vm)) is None:
        await _next(events, kept)
    return mishap


def _as_left(kept: Kept, vm: VM) -> bool:
    """Whether a machine that was just started is as it was told to be: QEMU has not stopped it."""
    return not kept.adopted and vm.state.value == kept.declared


async def _next(events: Subscription, kept: Kept) -> None:
    """Wait for what may be a mishap, and tell of a watchdog that barked; all there is at once."""
    event: Event | None = await anext(events)
    while event is not None:
        if event.name == "WATCHDOG":
            action = event.data.get("action", "")
            kept.tell("watchdog", f"the guest did not feed its watchdog: {action}")
        event = events.next_nowait()


async def _mishap(vm: VM) -> tuple[Mishap, str] | None:
    """What QEMU has stopped the guest for by itself."""
    status = (await vm.execute("query-status"))["status"]
    match status:
        case "watchdog":
            return Mishap.WATCHDOG, "the guest did not feed its watchdog"
        case "internal-error":
            return Mishap.INTERNAL_ERROR, "QEMU met an internal error and stopped the guest"
    return None
