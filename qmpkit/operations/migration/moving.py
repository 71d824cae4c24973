"""A machine's move to another QEMU: all of it, or nothing.

Who has the images, who can run, and what takes it back:

    source            destination          images      when it fails
    running           started, empty       source      the destination is ended
    running, sends    receives             source      … and the migration is broken off
    pre-switchover    receives             source      … and the source goes on; only when there
                                                       is something to do meanwhile
    completed         loaded, stands       nobody      … and takes the images again
    completed         told to run          ?           nobody knows: `MigrationUnknown`
    completed         runs                 destination the destination is the machine

The destination is started with `-S` and takes the images when it is told to run, not before
(late-block-activate): that command, and nothing QEMU does by itself, is the point of no
return.  QEMU's locks on the images keep the two apart even if we err.

With postcopy the memory that is left goes after the devices, so from pre-switchover on:

    pre-switchover    receives             source      the source goes on, as above
    postcopy-active   receives the devices nobody      QEMU goes no way back: `MigrationLost`,
                                                       unless the source itself says that it failed
    postcopy-active   postcopy-active, is  destination `MigrationLost`, when an end dies, or the
                      told to run, runs                connection is cut and not made anew
    postcopy-paused   postcopy-paused      destination … it is made anew (`migrate-recover`)
    postcopy-active   not to be asked, and destination … if that lasts (`silence`)
                      no memory goes
    completed         completed            destination the destination is the machine

It is told to run once it has the devices: the source has let go of the images by then, which
QEMU 7.2 does only after it has said postcopy-active.  The source is ended when all is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio

from qmpkit._trio import both, finished_within
from qmpkit.errors import MachineDied, MachineGone
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import MAIMED, break_off, finalized, forget_migrations
from qmpkit.machine.state import State
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.migration.along import Along, taken_along
from qmpkit.operations.migration.capabilities import Agreed
from qmpkit.operations.migration.convergence import Policy, is_switched
from qmpkit.operations.migration.end import Able, End, tell
from qmpkit.operations.migration.errors import MigrationFailed, MigrationUnknown
from qmpkit.operations.migration.mirrors import set_bitmaps
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.outcomes import lost, told_as
from qmpkit.operations.migration.parameters import parameters_of
from qmpkit.operations.migration.ports_along import PortsAlong
from qmpkit.operations.migration.postcopy import Postcopy
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.transfer import EVENTS, LAST_WORDS, Told, Transfer, sent_by
from qmpkit.operations.migration.unstuck import unstuck
from qmpkit.operations.migration.ways import Route
from qmpkit.operations.power import resume, stand
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.stillness import go_on
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Subscription

__all__ = ["NEWS", "Migrated", "Moving", "Plan"]

log = logging.getLogger("qmpkit.operations")


@attrs.frozen
class Migrated:
    """What a migration took: `seconds` in all, `downtime` of them the guest stood still.

    `downtime` is 0 for a guest that was paused anyway.  `passes` over the guest's memory, and
    bytes `transferred`.
    """

    seconds: float
    downtime: float
    passes: int
    transferred: int


NEWS = ("BLOCK_IO_ERROR", "GUEST_PANICKED", "SHUTDOWN", "SUSPEND", "WATCHDOG")
"""Events of a guest that may be none that can run."""


_PAUSES = {"capability": "pause-before-switchover", "state": True}


@attrs.frozen
class Plan:
    """What a migration is to be: what both ends are told, and the disks that go along.

    `able`: what the source can.
    """

    options: MigrationOptions
    agreed: Agreed
    able: Able
    moves: Sequence[DiskMove]

    @property
    def pauses(self) -> bool:
        """There is something to do while the guest stands still."""
        return _PAUSES in self.agreed.source


class Moving:
    """One migration; for one task, once.  *news*: of the source, from before it was found fit."""

    def __init__(
        self,
        source: Machine,
        end: End,
        plan: Plan,
        lost_ports: Callable[[str], object],
        news: Subscription,
    ) -> None:
        self._source = source
        self._news = news
        self._end = end
        self._plan = plan
        self._ports = PortsAlong(source, lost_ports)
        self._before: Mapping[str, Any] = {}
        self._is_broken = False
        self._ran_at: float | None = None
        self._handed_over = False
        self._is_there = False
        self._has_switched = False
        source.halted = source.state is not State.RUNNING

    async def go(self, policy: Policy, told: Told) -> Migrated:
        """Move, and end the source; whatever prevents that, the source is as it was.

        Raises MigrationFailed, MigrationUnknown; MachineDied or MachineGone when it is the
        source that has ended.
        """
        begun = trio.current_time()
        try:
            with (
                self._source.moving(),
                self._source.subscribe("STOP") as stops,
                self._end.watched(),
            ):
                await self._set_up()
                await self._ports.look()
                moves, options = self._plan.moves, self._plan.options
                async with taken_along(self._source, self._end, moves, options, told) as along:
                    transfer = await self._across(policy, told, along)
                downtime = _between(stops, self._ran_at)
        except BaseException as error:
            if self._handed_over:
                raise
            failure = await self._taken_back(error)
            if failure is error:
                raise
            raise failure from error
        seconds, last = trio.current_time() - begun, transfer.last
        passes, transferred = (0, 0) if last is None else (last.number, last.transferred)
        return Migrated(seconds, downtime, passes, transferred)

    async def _set_up(self) -> None:
        plan = self._plan
        there = partial(self._end.set_up, plan.agreed.destination, plan.options, plan.moves)
        await both(self._set_up_source, there)

    async def _set_up_source(self) -> None:
        source, plan = self._source, self._plan
        known = plan.able.parameters
        self._before = {name: known[name] for name in parameters_of(plan.options, known)}
        await tell(source, plan.agreed.source, plan.options, plan.able)
        await set_bitmaps(source, plan.moves, {move.id: move.source for move in plan.moves})

    async def _across(self, policy: Policy, told: Told, along: Along) -> Transfer:
        """Have all of the guest at the destination, and hand over to it."""
        source, end, plan = self._source, self._end, self._plan
        mapped = "mapped-ram" in plan.agreed.on
        async with end.laid(plan.options, source, mapped=mapped) as route:
            with source.subscribe(*EVENTS) as changes:
                transfer = Transfer(source, changes, policy, plan.options.downtime, told)
                try:
                    await source.execute("migrate", {"uri": route.uri})
                    if plan.pauses and await self._in_the_pause(transfer, along):
                        self._has_switched = True
                        await self._follow(transfer, route)
                        return transfer
                    async with sent_by(source) as there:
                        await self._hand_over(transfer, route, there)
                except BaseException:
                    if not self._handed_over:
                        await along.cut()
                    raise
                finally:
                    self._is_broken = transfer.is_broken
                return transfer

    async def _in_the_pause(self, transfer: Transfer, along: Along) -> bool:
        """Do what is to be done before the images change hands, then go on; as `_switch`."""
        await transfer.reached("pre-switchover")
        await along.settle()
        await self._ports.move(self._end)
        return await self._switch(transfer)

    async def _switch(self, transfer: Transfer) -> bool:
        """Have the source let go of the images; whether it goes on by postcopy."""
        source, going = self._source, {"state": "pre-switchover"}
        if not transfer.postcopies:
            await source.execute("migrate-continue", going)
            return False
        await source.execute("query-status")  # by then its state is that of all that it has told
        if source.state in (State.SHUTDOWN, State.PANICKED):
            raise MigrationFailed(source.name, f"its guest is {source.state.value}")
        if source.halted:
            raise MigrationFailed(source.name, "it was paused as it was about to run there")
        if (rest := self._end.rest()) is not None:
            rest.begins()
        transfer.is_quiet = True
        try:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await source.execute("migrate-continue", going)
                return is_switched(await transfer.reached("postcopy-active", "completed"))
        finally:
            transfer.is_quiet = False
        raise MigrationFailed(source.name, f"it did not switch in {STEP_GRACE:g} s")

    async def _follow(self, transfer: Transfer, route: Route) -> None:
        """Have the guest run at the destination, and the rest of its memory come.

        Nothing is lost until the destination has what it needs to run, and is told to.
        """
        source, options, rest = self._source, self._plan.options, self._end.rest()
        assert rest is not None, "else postcopy was refused"
        again = partial(rest.laid_again, options, route, source)
        within, bound = options.recover_within, options.finish_within
        way = Postcopy(source, rest, again, recover_within=within, look=transfer.look)
        try:
            async with finished_within(bound):
                self._ran_at = await way.bring(self._let_go)
                self._end.arrived()
                self._is_there = True
                with trio.move_on_after(STEP_GRACE + source.graces.total, shield=True):
                    await self._end_source(transfer)
        except BaseException as error:
            if self._is_there or not (self._handed_over or await self._is_split()):
                raise
            self._handed_over = True  # and lost: there is nothing that could be taken back
            with trio.move_on_after(STEP_GRACE, shield=True):
                await self._end.discard(patience=0.0)
                await source.kill()
            raise lost(source.name, error, bound) from error
        if way.failure is not None:
            raise way.failure

    def _let_go(self) -> None:
        """The guest is to run at the destination, so it is the source's no more."""
        self._handed_over = True
        self._source.moved()

    async def _is_split(self) -> bool:
        """Whether the source can neither go on nor go back."""
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
            return is_switched(str((await self._source.execute("query-migrate")).get("status")))
        return self._source.report is None

    async def _all_sent(self, transfer: Transfer) -> None:
        """The source agrees that it is done, or has ended: then its guest lives on all the same.

        One that does not agree runs again, and takes the images.
        """
        try:
            await transfer.reached("completed")
        except (MachineDied, MachineGone) as ended:
            log.warning("%s, its guest had migrated by then", ended)

    def _has_news(self) -> bool:
        """Whether the guest may be down: to ask takes a tenth of the time it stands still for."""
        try:
            return self._news.next_nowait() is not None
        except LOST:
            return True

    async def _all_there(self, transfer: Transfer, route: Route) -> None:
        """The destination has all of it, and the source agrees, or has ended since."""
        if not self._plan.pauses:
            with suppress(MachineDied, MachineGone):  # all may be there by then
                await transfer.reached("completed")
        if route.later:
            await transfer.reached("completed")
            await self._end.load(route.later)
        await self._end.loaded()
        await self._all_sent(transfer)

    async def _hand_over(self, transfer: Transfer, route: Route, there: trio.Event) -> None:
        """The point of no return: a cancellation waits until it is passed, or was not reached."""
        source, end = self._source, self._end
        within = 2 * STEP_GRACE + source.graces.total
        with trio.CancelScope() as bound:  # entered in time: a guest stands still once all is there
            await self._all_there(transfer, route)
            there.set()
            if source.halted or self._has_news():
                await end.examine()
            bound.shield, bound.deadline = True, trio.current_time() + within
            await self._run()
            source.moved()
            end.arrived()
            await self._end_source(transfer)
        if bound.cancelled_caught:  # its images are no longer its own, so it can do no harm
            log.warning("machine %r has migrated, and its old QEMU does not end", source.name)

    async def _end_source(self, transfer: Transfer) -> None:
        async def look() -> None:
            with suppress(*LOST):
                await transfer.look()

        try:
            await both(self._source.stop, look)  # the look goes first, and is answered first
        finally:  # whoever is told may fail
            await self._source.stop()

    async def _run(self) -> None:
        try:
            self._ran_at = await self._end.run(runs=not self._source.halted)
        except MigrationUnknown:
            self._handed_over = True
            with suppress(*LOST):
                await finalized(self._source)  # so that its owner's word is obeyed
            raise
        self._handed_over = True

    async def _taken_back(self, error: BaseException) -> BaseException:
        """End the destination, and have the source as it was; the error to be told of it."""
        source, said = self._source, ""
        with trio.move_on_after(STEP_GRACE, shield=True) as bound:
            # A mirror fails when the destination ends, too.
            may_know = isinstance(error, JobFailed) or (
                self._is_broken and self._plan.options.way != "file"
            )
            said = await self._end.discard(patience=LAST_WORDS if may_know else 0.0)
            if source.report is None:
                if self._has_switched:  # QEMU 7.2 still waits for its destination's answers
                    source.maimed = MAIMED
                await break_off(source, is_connected=self._plan.options.way != "file")
                await self._go_on()
                await self._forget()
        if bound.cancelled_caught:
            log.error("machine %r has not answered whether it goes on here", source.name)
        return told_as(source, self._end, error, said)

    async def _forget(self) -> None:
        """What the source was told for this migration is in no other's way."""
        with suppress(CommandRefused):
            await forget_migrations(self._source)
            await self._source.execute("migrate-set-parameters", self._before)

    async def _go_on(self) -> None:
        source = self._source
        await unstuck(source)
        await self._ports.go_back()
        status = await finalized(source)
        if source.halted:
            if status == "running":  # by itself, when it was paused as it had stopped for its move
                await stand(source)
            await go_on(source, ran=False)
        elif status in _GOES_ON:
            await resume(source)


# One that runs may do so without its images: 7.2 does when it is cancelled late, and takes them
# with `cont` alone.
_GOES_ON = ("paused", "postmigrate", "running")


def _between(stops: Subscription, ran_at: float | None) -> float:
    """Seconds from the last stop of the source to the first instruction at the destination."""
    last = None
    while stops.has_news and (stop := stops.next_nowait()) is not None:
        last = stop.monotonic
    return 0.0 if ran_at is None or last is None else ran_at - last
