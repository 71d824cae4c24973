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
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import attrs
import trio

from qmpkit._trio import finished_within, raise_collapsed
from qmpkit.errors import HostLacks, MachineDied, MachineGone
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import cancel_saving, forget_migrations, take_images_back
from qmpkit.machine.state import State
from qmpkit.operations.block.memory import go_on
from qmpkit.operations.forwards import forwarded_ports
from qmpkit.operations.migration.capabilities import Agreed, Setting
from qmpkit.operations.migration.convergence import Policy
from qmpkit.operations.migration.errors import MigrationFailed, MigrationLost, MigrationUnknown
from qmpkit.operations.migration.incoming import Incoming
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.parameters import known_parameters, parameters_of
from qmpkit.operations.migration.postcopy import Again, Postcopy, is_switched
from qmpkit.operations.migration.transfer import EVENTS, LAST_WORDS, Told, Transfer, loaded, sent_by
from qmpkit.operations.migration.ways import laid, laid_again, listen
from qmpkit.operations.ports import change_forwards
from qmpkit.operations.power import resume
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Subscription
from qmpkit.spec.network import Forward, UserNic

__all__ = ["Migrated", "Moving"]

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


class Moving:
    """One migration; for one task, once."""

    def __init__(
        self, source: Machine, incoming: Incoming, options: MigrationOptions, agreed: Agreed
    ) -> None:
        self._source = source
        self._incoming = incoming
        self._destination = incoming.machine
        self._options = options
        self._agreed = agreed
        self._ran = source.state is State.RUNNING
        self._ports: dict[str, list[Forward]] = {}
        self._ports_are_off = False
        self._before: Mapping[str, Any] = {}
        self._is_broken = False
        self._handed_over = False

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
                self._destination.subscribe("RESUME") as resumes,
            ):
                self._before = await self._set(self._source, self._agreed.source)
                await self._set(self._destination, self._agreed.destination)
                self._ports = await _ports_of(self._source)
                transfer = await self._across(policy, told)
                downtime = _between(stops, resumes) if self._ran else 0.0
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

    async def _set(self, machine: Machine, setting: Setting) -> Mapping[str, Any]:
        """Tell one end what is agreed; what its parameters were before."""
        await machine.execute("migrate-set-capabilities", {"capabilities": setting})
        before = await known_parameters(machine)
        parameters = parameters_of(self._options, before)
        await machine.execute("migrate-set-parameters", parameters)
        return {name: before[name] for name in parameters}

    async def _across(self, policy: Policy, told: Told) -> Transfer:
        """Have all of the guest at the destination, and hand over to it."""
        source, destination = self._source, self._destination
        async with laid(
            self._options, source, destination, mapped="mapped-ram" in self._agreed.on
        ) as route:
            with (
                source.subscribe(*EVENTS) as changes,
                destination.subscribe("MIGRATION") as arrivals,
            ):
                transfer = Transfer(source, changes, policy, self._options.downtime, told)
                try:
                    await source.execute("migrate", {"uri": route.uri})
                    await transfer.reached("pre-switchover")
                    await self._move_ports()
                    if await self._switch(transfer):
                        again = partial(laid_again, self._options, route, source, destination)
                        await self._follow(transfer, again)
                        return transfer
                    if route.later:
                        await transfer.reached("completed")
                        await listen(destination, route.later)
                    async with sent_by(source):
                        await loaded(destination, arrivals)
                    await self._check_arrival()
                    await self._all_sent(transfer)
                finally:
                    self._is_broken = transfer.is_broken
                await self._hand_over(transfer)
                return transfer

    async def _switch(self, transfer: Transfer) -> bool:
        """Have the source let go of the images; whether this was the point of no return.

        It is with postcopy, once the source says so: the destination may have begun to write.
        """
        source, going = self._source, {"state": "pre-switchover"}
        if not transfer.postcopies:
            await source.execute("migrate-continue", going)
            return False
        if source.state is not State.PAUSED:
            raise MigrationFailed(source.name, f"its guest is {source.state.value}")
        with trio.move_on_after(STEP_GRACE, shield=True) as bound:
            await source.execute("migrate-continue", going)
            status = await transfer.reached("postcopy-active", "completed")
            self._handed_over = is_switched(status)
        if bound.cancelled_caught:
            raise MigrationFailed(source.name, f"it did not switch in {STEP_GRACE:g} s")
        if self._handed_over:
            source.moved()
            self._incoming.has_switched = True
        return self._handed_over

    async def _follow(self, transfer: Transfer, again: Again) -> None:
        """Have the guest run at the destination, and the rest of its memory come."""
        bound = self._options.finish_within
        try:
            async with finished_within(bound):
                failure = await self._finished(transfer, again)
        except BaseException as error:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await self._destination.kill()
                await self._source.kill()
            if isinstance(error, MigrationLost):
                raise
            raise MigrationLost(self._source.name, _why_unfinished(error, bound)) from error
        with trio.move_on_after(STEP_GRACE + self._source.graces.total, shield=True):
            await self._end_source(transfer)
        if failure is not None:
            raise failure

    async def _finished(self, transfer: Transfer, again: Again) -> Exception | None:
        within, source, destination = self._options.recover_within, self._source, self._destination
        rest = Postcopy(source, destination, again, recover_within=within, look=transfer.look)
        awake = trio.Event()
        destination.loaded()

        async def wake() -> None:
            with suppress(*LOST):  # which is seen by who waits for the rest
                await resume(destination)
                awake.set()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wake)
                failure = await rest.finish()
                with trio.fail_after(STEP_GRACE):
                    await awake.wait()
                self._arrive()
        except BaseExceptionGroup as group:
            raise_collapsed(group)
        return failure

    async def _check_arrival(self) -> None:
        """The guest is there, and has not panicked or powered off on its way."""
        status = (await self._destination.execute("query-status"))["status"]
        if status not in _LOADED:
            raise MigrationFailed(self._source.name, f"its guest is in the state {status!r}")

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
        await self._open_ports(self._destination)

    async def _open_ports(self, machine: Machine) -> None:
        for nic, ports in self._ports.items():
            await change_forwards(machine, machine.name, nic, ports)

    async def _hand_over(self, transfer: Transfer) -> None:
        """The point of no return: a cancellation waits until it is passed, or was not reached."""
        source = self._source
        with trio.move_on_after(2 * STEP_GRACE + source.graces.total, shield=True) as bound:
            await self._wake()
            self._arrive()
            await self._end_source(transfer)
        if bound.cancelled_caught:  # its images are no longer its own, so it can do no harm
            log.warning("machine %r has migrated, and its old QEMU does not end", source.name)

    def _arrive(self) -> None:
        """The destination is the machine, and has all that is its."""
        self._destination.spec = self._incoming.spec
        self._source.moved()
        self._incoming.arrived.set()

    async def _end_source(self, transfer: Transfer) -> None:
        try:
            with suppress(*LOST):
                await transfer.look()
        finally:  # whoever is told may fail
            await self._source.stop()

    async def _wake(self) -> None:
        destination = self._destination
        destination.loaded()
        if not self._ran:
            await take_images_back(destination)
            self._handed_over = True
            return
        try:
            with trio.fail_after(STEP_GRACE):
                await resume(destination)
        except (*LOST, trio.TooSlowError) as lost:
            self._handed_over = True
            await destination.kill()
            raise MigrationUnknown(destination.name, _how_lost(lost)) from lost
        self._handed_over = True

    async def _taken_back(self, error: BaseException) -> BaseException:
        """End the destination, and have the source as it was; the error to be told of it."""
        source, destination = self._source, self._destination
        has_ended = False
        with trio.move_on_after(STEP_GRACE, shield=True) as bound:
            if self._is_broken and self._options.way != "file":  # the other end may know why
                with trio.move_on_after(LAST_WORDS):
                    await destination.wait()
            has_ended = destination.report is not None
            await destination.kill()
            if source.report is None:
                await cancel_saving(source)
                await self._go_on()
                await self._forget()
        if bound.cancelled_caught:
            log.error("machine %r has not answered whether it goes on here", source.name)
        said = destination.child.stderr_tail.strip() if has_ended else ""
        return self._told_as(error, said)

    async def _forget(self) -> None:
        """What the source was told for this migration is in no other's way."""
        with suppress(CommandRefused):
            await forget_migrations(self._source)
            await self._source.execute("migrate-set-parameters", self._before)

    async def _go_on(self) -> None:
        source = self._source
        if self._ports_are_off:
            try:
                await self._open_ports(source)
            except HostLacks as lacks:  # somebody has taken a port in these milliseconds
                log.warning("after its migration has failed, %s", lacks)
        status = await source.execute("query-status")
        if not self._ran:
            await go_on(source, ran=False)
        elif status["status"] in _HALTED:
            await resume(source)

    def _told_as(self, error: BaseException, said: str) -> BaseException:
        name = self._source.name
        match error:
            case MigrationFailed():
                return MigrationFailed(name, error.why, said)
            case CommandRefused():
                return MigrationFailed(name, str(error), said)
            case MachineDied() | MachineGone():
                return self._source.ended("migrating") or self._incoming.has_ended()
        return error


_LOADED = ("paused", "prelaunch")
_HALTED = ("paused", "postmigrate", "finish-migrate")


def _why_unfinished(error: BaseException, bound: float) -> str:
    if isinstance(error, trio.Cancelled):
        return f"it was cancelled, and not all there {bound:g} s later"
    return str(error) or type(error).__name__


def _how_lost(lost: Exception) -> str:
    if isinstance(lost, trio.TooSlowError):
        return f"which did not answer for {STEP_GRACE:g} s"
    return f"which ended: {lost}"


def _between(stops: Subscription, resumes: Subscription) -> float:
    """Seconds from the first stop of the source to the first instruction at the destination."""
    stop, resume = stops.next_nowait(), resumes.next_nowait()
    return 0.0 if stop is None or resume is None else resume.monotonic - stop.monotonic


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
