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
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import attrs
import trio

from qmpkit.errors import HostLacks, MachineDied, MachineGone
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import cancel_saving, take_images_back
from qmpkit.machine.state import State
from qmpkit.operations.block.memory import go_on
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.forwards import forwarded_ports
from qmpkit.operations.migration.along import Along, taken_along
from qmpkit.operations.migration.capabilities import Agreed, Setting
from qmpkit.operations.migration.convergence import Copying, Policy, copying_round
from qmpkit.operations.migration.errors import MigrationFailed, MigrationUnknown
from qmpkit.operations.migration.incoming import Incoming
from qmpkit.operations.migration.mirrors import carried_bitmaps
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.parameters import known_parameters, parameters_of
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.transfer import EVENTS, Told, Transfer, loaded
from qmpkit.operations.migration.ways import laid, listen
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
                self._source.subscribe("STOP") as stops,
                self._destination.subscribe("RESUME") as resumes,
            ):
                await self._set(self._source, self._agreed.source)
                await self._set(self._destination, self._agreed.destination)
                await self._set_bitmaps()
                self._ports = await _ports_of(self._source)
                copied = self._copied(begun, told)
                disks = taken_along(self._source, self._incoming, self._options, copied)
                async with disks as along:
                    transfer = await self._across(policy, told, along)
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

    async def _set(self, machine: Machine, setting: Setting) -> None:
        await machine.execute("migrate-set-capabilities", {"capabilities": setting})
        parameters = parameters_of(self._options, await known_parameters(machine))
        await machine.execute("migrate-set-parameters", parameters)

    async def _set_bitmaps(self) -> None:
        if "dirty-bitmaps" not in self._agreed.on:
            return
        ends = ((self._source, _source_node), (self._destination, _node))
        for machine, node in ends:
            mapping = carried_bitmaps(self._incoming.moves, node)
            await machine.execute("migrate-set-parameters", {"block-bitmap-mapping": mapping})

    def _copied(self, begun: float, told: Told) -> Callable[[tuple[Copying, ...]], object]:
        def tell(disks: tuple[Copying, ...]) -> None:
            told(copying_round(disks, trio.current_time() - begun, self._options.downtime))

        return tell

    async def _across(self, policy: Policy, told: Told, along: Along) -> Transfer:
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
                    await along.settle()
                    await self._move_ports()
                    await source.execute("migrate-continue", {"state": "pre-switchover"})
                    if route.later:
                        await transfer.reached("completed")
                        await listen(destination, route.later)
                    await loaded(destination, arrivals)
                    await self._check_arrival()
                    await self._all_sent(transfer)
                finally:
                    self._is_broken = transfer.is_broken
                await self._hand_over(transfer)
                return transfer

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
            try:
                await self._wake()
            finally:
                if self._handed_over:
                    self._incoming.keep_images()
            self._destination.spec = self._incoming.spec
            source.moved()
            self._incoming.arrived.set()
            try:
                with suppress(*LOST):
                    await transfer.look()
            finally:  # whoever is told may fail
                await source.stop()
        if bound.cancelled_caught:  # its images are no longer its own, so it can do no harm
            log.warning("machine %r has migrated, and its old QEMU does not end", source.name)

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
            broken = self._is_broken or isinstance(error, JobFailed)
            if broken and self._options.way != "file":  # the other end may know why
                with trio.move_on_after(_LAST_WORDS):
                    await destination.wait()
            has_ended = destination.report is not None
            await destination.kill()
            await self._incoming.discard_images()
            if source.report is None:
                await cancel_saving(source)
                await self._go_on()
        if bound.cancelled_caught:
            log.error("machine %r has not answered whether it goes on here", source.name)
        said = destination.child.stderr_tail.strip() if has_ended else ""
        return self._told_as(error, said)

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
            case CommandRefused() | JobFailed():
                return MigrationFailed(name, str(error), said)
            case MachineDied() | MachineGone() if self._source.report is None:
                return self._incoming.has_ended()
        return error


def _source_node(move: DiskMove) -> str:
    return move.source


def _node(move: DiskMove) -> str:
    return move.node


_LOADED = ("paused", "prelaunch")
_HALTED = ("paused", "postmigrate", "finish-migrate")


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
