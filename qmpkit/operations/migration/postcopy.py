"""The time in which a guest runs at its destination already, and its memory follows.

Part of it is at each end until all is there, so both QEMUs are needed, and a connection: one
that is cut is made anew, for QEMU keeps at both ends what it has.  Nothing leads back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from enum import Enum
from typing import Any

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.errors import Fault
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.errors import MigrationLost
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.transfer import LAST_WORDS
from qmpkit.operations.steps import LOST
from qmpkit.qmp.errors import CommandRefused

__all__ = ["Again", "Outlook", "Postcopy", "is_switched", "outlook", "postcopy_faults"]

log = logging.getLogger("qmpkit.operations")

Again = Callable[[], AbstractAsyncContextManager[str]]
"""Has the destination wait at another place within the block (`migrate-recover`); its address."""

_ATTEMPT = 5.0
"""Seconds in which a connection is made, or tried anew; a refused one is often not told of."""

_PAUSES = (0.1, 0.2, 0.5, 1.0)
_MOST_CUTS = 50
_EVERY = 0.5
_BROKEN = ("failed", "cancelled", "cancelling")
_CUT = "postcopy-paused"
_SWITCHED = "postcopy-"


class Outlook(Enum):
    """What there is to do."""

    ARRIVED = "it is all there"
    SENDING = "it is on its way"
    CUT = "its connection is cut"
    ORPHANED = "nothing is sent any more"
    LOST = "the destination has ended"


def is_switched(status: str | None) -> bool:
    """Whether an end that says this (`query-migrate`) is past the point of no return."""
    return status is not None and status.startswith(_SWITCHED)


def outlook(source: str | None, destination: str | None) -> Outlook:
    """By the migration's status at both ends; None: that QEMU has ended.  Pure."""
    if destination is None:
        return Outlook.LOST
    if destination == "completed":
        return Outlook.ARRIVED
    if source is None or source in _BROKEN or destination in _BROKEN:
        return Outlook.ORPHANED
    if _CUT in (source, destination) and source != "completed":
        return Outlook.CUT
    return Outlook.SENDING


def postcopy_faults(options: MigrationOptions) -> tuple[Fault, ...]:
    """The ways by which memory cannot follow.  Pure."""
    faults = []
    if options.way == "file":
        faults.append(Fault("way", "a file has no way back for postcopy", 'way="fd"'))
    if options.channels:
        faults.append(Fault("channels", "postcopy has one and no more", "channels=0"))
    return tuple(faults)


@attrs.define
class _End:
    """One end as it was heard of last; `heard` counts."""

    machine: Machine
    status: str | None = "setup"
    heard: int = 0

    @property
    def ended(self) -> bool:
        return self.status is None


class Postcopy:
    """What is left of one migration after the switch; for one task, once.

    *again*: how a connection is made anew; *recover_within*: in so many seconds.  *look* tells
    whoever looks on, twice a second and of each cut.
    """

    def __init__(
        self,
        source: Machine,
        destination: Machine,
        again: Again,
        *,
        recover_within: float,
        look: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._source = _End(source)
        self._destination = _End(destination)
        self._again = again
        self._recover_within = recover_within
        self._look = look
        self._failure: Exception | None = None
        self._cuts = 0
        self._changed = trio.Event()

    async def finish(self) -> Exception | None:
        """Wait until all is at the destination; what *look* has raised meanwhile.

        MigrationLost when it cannot be there any more.  Cancelled, it is on its way yet.
        """
        try:
            async with trio.open_nursery() as nursery:
                for end in (self._source, self._destination):
                    nursery.start_soon(self._listen, end)
                nursery.start_soon(self._look_on)
                await self._all_there()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_collapsed(group)
        return self._failure

    async def _listen(self, end: _End) -> None:
        try:
            with end.machine.subscribe("MIGRATION") as changes:
                with trio.move_on_after(_ATTEMPT):  # it may wait for its own memory
                    told = await end.machine.execute("query-migrate")
                    self._heard(end, str(told.get("status", "none")))
                async for event in changes:
                    self._heard(end, str(event.data["status"]))
        except LOST:
            self._heard(end, None)

    def _heard(self, end: _End, status: str | None) -> None:
        end.status, end.heard = status, end.heard + 1
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _until(self, met: Callable[[], bool]) -> None:
        while not met():
            await self._changed.wait()

    async def _look_on(self) -> None:
        while True:
            await self._tell()
            await trio.sleep(_EVERY)

    async def _tell(self) -> None:
        """How far it is; a failure of whoever is told costs the guest nothing."""
        if self._look is None or self._failure is not None:
            return
        try:
            await self._look()
        except LOST:
            return
        except Exception as error:
            self._failure = error

    @property
    def _outlook(self) -> Outlook:
        return outlook(self._source.status, self._destination.status)

    async def _all_there(self) -> None:
        while (now := self._outlook) is not Outlook.ARRIVED:
            match now:
                case Outlook.SENDING:
                    await self._until(lambda: self._outlook is not Outlook.SENDING)
                case Outlook.CUT:
                    await self._recover()
                case Outlook.ORPHANED:
                    await self._hear_last_words()
                case Outlook.LOST:
                    raise self._lost("the destination's QEMU has ended")

    async def _hear_last_words(self) -> None:
        with trio.move_on_after(LAST_WORDS):
            await self._until(lambda: self._outlook is not Outlook.ORPHANED)
            return
        broken = "has ended" if self._source.ended else f"says {self._source.status!r}"
        raise self._lost(f"the source's QEMU {broken}, with memory that it had not sent")

    async def _recover(self) -> None:
        """Make the connection anew."""
        name, why = self._source.machine.name, "it is cut again and again"
        self._cuts += 1
        log.warning("machine %r: the connection of its migration is cut", name)
        with trio.move_on_after(self._recover_within if self._cuts <= _MOST_CUTS else 0):
            await self._tell()
            attempt = 0
            while self._outlook is Outlook.CUT:
                if not (why := await self._try_again()):
                    log.warning("machine %r: the connection is made anew", name)
                    return
                log.warning("machine %r: it is not connected again: %s", name, why)
                await trio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
            return
        raise self._lost(
            f"the connection was cut, and not made anew in {self._recover_within:g} s: {why}"
        )

    async def _try_again(self) -> str:
        """Once; why that failed, or nothing."""
        why = f"no answer in {_ATTEMPT:g} s"
        with trio.move_on_after(_ATTEMPT):
            try:
                await self._both_are_cut()
                async with self._again() as uri:
                    heard = self._source.heard
                    resumed = {"uri": uri, "resume": True}
                    await self._source.machine.execute("migrate", resumed)
                    await self._until(lambda: self._is_resumed(heard))
                why = "" if self._outlook is not Outlook.CUT else "it was cut at once"
            except (CommandRefused, *LOST) as error:
                why = str(error)
        return why

    def _is_resumed(self, heard: int) -> bool:
        """Or that it is not: it is sending, or cut since."""
        if self._outlook is Outlook.CUT:
            return self._source.status == _CUT and self._source.heard > heard
        going = ("postcopy-active", "completed")
        return self._outlook is not Outlook.SENDING or self._source.status in going

    async def _both_are_cut(self) -> None:
        """One end may not have noticed."""
        for end in (self._source, self._destination):
            for command, arguments in _CUTTING.items():
                if end.status in (_CUT, "completed", None):
                    break
                with suppress(CommandRefused):  # there is nothing to be cut
                    await end.machine.execute(command, arguments, oob=True)
        ends = (self._source, self._destination)
        await self._until(
            lambda: self._outlook is not Outlook.CUT or all(end.status == _CUT for end in ends)
        )

    def _lost(self, why: str) -> MigrationLost:
        said = self._destination.machine.child.stderr_tail.strip()
        return MigrationLost(
            self._source.machine.name, why, said if self._destination.ended else ""
        )


_CUTTING: Mapping[str, Mapping[str, Any]] = {
    "migrate-pause": {},
    "yank": {"instances": [{"type": "migration"}]},
}
