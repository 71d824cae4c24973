"""A machine's move to another QEMU: all of it, or nothing.

Who has the images, who can run, and what takes it back:

    source            destination          images      when it fails
    running           started, empty       source      the destination is ended
    running, sends    receives             source      … and the migration is cancelled
    pre-switchover    receives             source      … and the source goes on
    completed         loaded, stands       nobody      … and takes the images again
    completed         told to run          ?           nobody knows: `MigrationUnknown`
    completed         runs                 destination the destination is the machine

The destination is started with `-S` and takes the images when it is told to run, not before
(late-block-activate): that command, and nothing QEMU does by itself, is the point of no
return.  QEMU's locks on the images keep the two apart even if we err.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import attrs
import trio

from qmpkit.errors import HostLacks, MachineDied, MachineGone
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import cancel_saving, finalized
from qmpkit.machine.state import State
from qmpkit.operations.block.memory import go_on
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.forwards import forwarded_ports
from qmpkit.operations.migration.along import Along, taken_along
from qmpkit.operations.migration.capabilities import Agreed
from qmpkit.operations.migration.convergence import Policy
from qmpkit.operations.migration.end import End
from qmpkit.operations.migration.errors import MigrationFailed, MigrationUnknown
from qmpkit.operations.migration.mirrors import set_bitmaps
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.parameters import known_parameters, parameters_of
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.transfer import EVENTS, Told, Transfer
from qmpkit.operations.ports import change_forwards
from qmpkit.operations.power import resume
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Subscription
from qmpkit.spec.network import Forward, UserNic

__all__ = ["Migrated", "Moving"]

log = logging.getLogger("qmpkit.operations")

_LAST_WORDS = 2.0
"""Seconds that a destination whose source has failed is given to say why, before it is ended."""


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


class Moving:
    """One migration; for one task, once."""

    def __init__(
        self,
        source: Machine,
        end: End,
        options: MigrationOptions,
        agreed: Agreed,
        moves: Sequence[DiskMove],
    ) -> None:
        self._source = source
        self._end = end
        self._options = options
        self._agreed = agreed
        self._moves = moves
        self._ran = source.state is State.RUNNING
        self._ports: dict[str, list[Forward]] = {}
        self._ports_are_off = False
        self._is_broken = False
        self._ran_at: float | None = None
        self._handed_over = False

    async def go(self, policy: Policy, told: Told) -> Migrated:
        """Move, and end the source; whatever prevents that, the source is as it was.

        Raises MigrationFailed, MigrationUnknown; MachineDied or MachineGone when it is the
        source that has ended.
        """
        begun = trio.current_time()
        try:
            with self._source.subscribe("STOP") as stops, self._end.watched():
                await self._set_up()
                self._ports = await _ports_of(self._source)
                async with taken_along(
                    self._source, self._end, self._moves, self._options, told
                ) as along:
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
        source, agreed = self._source, self._agreed
        await source.execute("migrate-set-capabilities", {"capabilities": agreed.source})
        parameters = parameters_of(self._options, await known_parameters(source))
        await source.execute("migrate-set-parameters", parameters)
        await set_bitmaps(source, self._moves, {move.id: move.source for move in self._moves})
        await self._end.set_up(agreed.destination, self._options, self._moves)

    async def _across(self, policy: Policy, told: Told, along: Along) -> Transfer:
        """Have all of the guest at the destination, and hand over to it."""
        source, end = self._source, self._end
        mapped = "mapped-ram" in self._agreed.on
        async with end.laid(self._options, source, mapped=mapped) as route:
            with source.subscribe(*EVENTS) as changes:
                transfer = Transfer(source, changes, policy, self._options.downtime, told)
                try:
                    await source.execute("migrate", {"uri": route.uri})
                    await transfer.reached("pre-switchover")
                    await along.settle()
                    await self._move_ports()
                    await source.execute("migrate-continue", {"state": "pre-switchover"})
                    if route.later:
                        await transfer.reached("completed")
                        await end.load(route.later)
                    await end.loaded()
                    await self._all_sent(transfer)
                except BaseException:
                    await along.cut()
                    raise
                finally:
                    self._is_broken = transfer.is_broken
                await self._hand_over(transfer)
                return transfer

    async def _all_sent(self, transfer: Transfer) -> None:
        """The source agrees that it is done, or has ended: then its guest lives on all the same.

        One that does not agree runs again, and takes the images.
        """
        try:
            await transfer.reached("completed")
        except (MachineDied, MachineGone) as ended:
            log.warning("%s, its guest had migrated by then", ended)

    async def _move_ports(self) -> None:
        """This host's ports lead to the destination: the guest stands still already."""
        self._ports_are_off = bool(self._ports)
        for nic in self._ports:
            await change_forwards(self._source, self._source.name, nic, [])
        await self._end.open_ports(self._ports)

    async def _hand_over(self, transfer: Transfer) -> None:
        """The point of no return: a cancellation waits until it is passed, or was not reached."""
        source = self._source
        with trio.move_on_after(2 * STEP_GRACE + source.graces.total, shield=True) as bound:
            await self._run()
            source.moved()
            self._end.arrived()
            try:
                with suppress(*LOST):
                    await transfer.look()
            finally:  # whoever is told may fail
                await source.stop()
        if bound.cancelled_caught:  # its images are no longer its own, so it can do no harm
            log.warning("machine %r has migrated, and its old QEMU does not end", source.name)

    async def _run(self) -> None:
        try:
            self._ran_at = await self._end.run(runs=self._ran)
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
                self._is_broken and self._options.way != "file"
            )
            said = await self._end.discard(patience=_LAST_WORDS if may_know else 0.0)
            if source.report is None:
                await cancel_saving(source)
                await self._go_on()
        if bound.cancelled_caught:
            log.error("machine %r has not answered whether it goes on here", source.name)
        return self._told_as(error, said)

    async def _go_on(self) -> None:
        source = self._source
        if self._ports_are_off:
            try:
                for nic, ports in self._ports.items():
                    await change_forwards(source, source.name, nic, ports)
            except HostLacks as lacks:  # somebody has taken a port in these milliseconds
                log.warning("after its migration has failed, %s", lacks)
        status = await finalized(source)
        if not self._ran:
            await go_on(source, ran=False)
        elif status in _HALTED:
            await resume(source)

    def _told_as(self, error: BaseException, said: str) -> BaseException:
        name = self._source.name
        match error:
            case MigrationFailed():
                return MigrationFailed(name, error.why, said)
            case CommandRefused() | JobFailed():
                return MigrationFailed(name, str(error), said)
            case MachineDied() | MachineGone() if self._source.report is None:
                return self._end.has_ended()
        return error


_HALTED = ("paused", "postmigrate")


def _between(stops: Subscription, ran_at: float | None) -> float:
    """Seconds from the first stop of the source to the first instruction at the destination."""
    if ran_at is None:
        return 0.0
    stop = stops.next_nowait()
    return 0.0 if stop is None else ran_at - stop.monotonic


async def _ports_of(machine: Machine) -> dict[str, list[Forward]]:
    """The ports that lead into the guest, with the numbers that they turned out to have."""
    if not any(isinstance(nic, UserNic) and nic.forwards for nic in machine.spec.nics):
        return {}
    ports: dict[str, list[Forward]] = {}
    for port in await forwarded_ports(machine):
        proto: Literal["tcp", "udp"] = "udp" if port.proto == "udp" else "tcp"
        forward = Forward(port.port, port.guest_port, proto, port.address, port.guest_address)
        ports.setdefault(port.nic, []).append(forward)
    return ports
