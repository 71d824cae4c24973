"""The time in which a guest runs at its destination already, and its memory follows.

Part of it is at each end until all is there, so both QEMUs are needed, and a connection: one
that is cut is made anew, for QEMU keeps at both ends what it has.  Nothing leads back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from enum import Enum
from functools import partial
from typing import Any, Protocol

import attrs
import trio

from qmpkit._trio import raise_failed
from qmpkit.errors import Fault
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import is_stuck
from qmpkit.operations.migration.capabilities import Setting
from qmpkit.operations.migration.errors import MigrationLost
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.silence import Silence
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.transfer import LAST_WORDS, failure
from qmpkit.operations.migration.ways import Route
from qmpkit.operations.migration.wire import Refused, WireLost
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.qmp.errors import CommandRefused

__all__ = ["RUNNABLE", "UNHEARD", "Again", "Outlook", "Postcopy", "Rest", "cut", "listened"]
__all__ += ["outlook", "postcopy_faults"]

log = logging.getLogger("qmpkit.operations")

Again = Callable[[], AbstractAsyncContextManager[str]]
"""Has the destination wait at another place within the block (`migrate-recover`); its address."""

RUNNABLE = ("postcopy-active", "completed")
"""The statuses of a destination that has what its guest needs to run, and to which memory comes."""

UNHEARD = "unheard"
"""The status of a destination of another supervisor, which cannot be asked; QEMU has none such."""

_ATTEMPT = 5.0
"""Seconds in which a connection is made, or tried anew; a refused one is often not told of."""

_LOOK = 0.1
_PAUSES = (0.1, 0.2, 0.5, 1.0)
_MOST_CUTS = 50
_EVERY = 0.5
_BROKEN = ("failed", "cancelled", "cancelling")
_CUT = "postcopy-paused"
_NO_BITMAPS = "its dirty bitmaps cannot go along by postcopy, of which QEMU would abort"
_ASKED = "setup"  # is told when it is to wait for memory anew, done or not, and is no status then


class Outlook(Enum):
    """What there is to do."""

    ARRIVED = "it is all there"
    SENDING = "it is on its way"
    CUT = "its connection is cut"
    ORPHANED = "nothing is sent any more"
    LOST = "the destination has ended"
    UNHEARD = "nobody knows whether it is all there"


def outlook(source: str | None, destination: str | None) -> Outlook:
    """By the migration's status at both ends; None: that QEMU has ended.  Pure."""
    if destination is None:
        return Outlook.LOST
    if destination == "completed":
        return Outlook.ARRIVED
    if destination == UNHEARD and source in (None, "completed"):
        return Outlook.UNHEARD
    if source is None or source in _BROKEN or destination in _BROKEN:
        return Outlook.ORPHANED
    if _CUT in (source, destination) and source != "completed":
        return Outlook.CUT
    return Outlook.SENDING


def postcopy_faults(options: MigrationOptions, moves: Sequence[DiskMove]) -> tuple[Fault, ...]:
    """The ways by which memory cannot follow, and what does not go with it.  Pure.

    Dirty bitmaps are sent after the switch then, and QEMU's thread that takes memory in aborts.
    """
    hint = 'policy="live" (--policy live), or end its chain of backups before'
    faults = [Fault(f"disks.{move.id}", _NO_BITMAPS, hint) for move in moves if move.bitmaps]
    if options.way == "file":
        faults.append(Fault("way", "a file has no way back for postcopy", 'way="fd" (--way fd)'))
    if options.channels:
        hint = "channels=0 (leave --channels out)"
        faults.append(Fault("channels", "postcopy has one and no more", hint))
    return tuple(faults)


class Rest(Protocol):
    """What a destination is asked while the rest of a guest comes to it."""

    async def refusals(self, setting: Setting) -> tuple[Fault, ...]:
        """Why its host does not let it, found by trying; nothing is on its way yet."""

    def begins(self) -> None:
        """The source is told to switch: what is lost now is not taken back by itself."""

    def switched(self) -> None:
        """The guest is there from here on, and nowhere else."""

    async def listen(self, heard: Callable[[str | None], None]) -> None:
        """Tell what its migration's status is, each time anew; None, and return, at its end."""

    def unheard(self) -> float:
        """For how many seconds nobody there has been heard of; 0 where an end is seen at once."""

    async def run(self) -> float | None:
        """Run the guest, and wait until it does, which may need memory that comes yet.

        Gives when it ran, as `End.run`.  Raises CommandRefused, and at its end one of `LOST`.
        """

    async def cut(self) -> None:
        """Have it see that the connection is cut, if it does not by itself."""

    def laid_again(
        self, options: MigrationOptions, route: Route | None, source: Machine
    ) -> AbstractAsyncContextManager[str]:
        """Another way from *source* after *route*; what *source* is to be told."""

    def last_words(self) -> str:
        """What its QEMU has said on its stderr."""


async def listened(machine: Machine, heard: Callable[[str | None], None]) -> None:
    """Tell each status of the migration at one end (`query-migrate`, MIGRATION)."""
    try:
        with machine.subscribe("MIGRATION") as changes:
            with trio.move_on_after(_ATTEMPT):  # it may wait for its own memory
                told = await machine.execute("query-migrate")
                heard(str(told.get("status", "none")))
            async for event in changes:
                if event.data["status"] != _ASKED:
                    heard(str(event.data["status"]))
    except LOST:
        heard(None)


async def cut(machine: Machine) -> None:
    """Have one end let go of a connection that it holds for good (`migrate-pause`, `yank`)."""
    for command, arguments in _CUTTING.items():
        try:
            await machine.execute(command, arguments, oob=True)
        except CommandRefused:  # there is nothing to be cut, or not in this way
            continue
        return


@attrs.define
class _Heard:
    """What one end has said of late, and how often it has said something."""

    status: str | None = "setup"
    times: int = 0


class Postcopy:
    """What is left of one migration after the switch; for one task, once.

    *again*: how a connection is made anew, in *recover_within* seconds.  *look* tells whoever
    looks on, twice a second and of each cut.
    """

    def __init__(
        self,
        source: Machine,
        rest: Rest,
        again: Again,
        *,
        recover_within: float,
        look: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._machine = source
        self._rest = rest
        self._source = _Heard()
        self._destination = _Heard()
        self._again = again
        self._recover_within = recover_within
        self._look = look
        self._failure: Exception | None = None
        self._is_let_go = False
        self._ran_at: float | None = None
        self._runs = trio.Event()
        self._cuts = 0
        self._silence = Silence(source, rest.unheard)
        self._changed = trio.Event()

    @property
    def failure(self) -> Exception | None:
        """What *look* has raised; the guest is not to suffer for that."""
        return self._failure

    async def bring(self, let_go: Callable[[], object] | None = None) -> float | None:
        """Run the guest there, and wait until all of it is; when it ran.

        *let_go* is called before it is told to run, None when it was before.  MigrationLost
        when it cannot be there any more; what else is raised, also by a cancellation, leaves
        the destination to be ended.
        """
        self._is_let_go = let_go is None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listened, self._machine, partial(self._heard, self._source))
                nursery.start_soon(self._rest.listen, partial(self._heard, self._destination))
                nursery.start_soon(self._look_on)
                nursery.start_soon(self._silence.listened)
                if let_go is not None:
                    nursery.start_soon(self._run, let_go)
                await self._all_there()
                if let_go is not None:
                    await self._does_run()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_failed(group)
        return self._ran_at

    async def _run(self, let_go: Callable[[], object]) -> None:
        # Not before it has all of the devices: then the source has let go of the images.
        await self._until(lambda: self._destination.status in RUNNABLE)
        self._is_let_go = True
        let_go()
        self._rest.switched()
        with suppress(*LOST):  # its end is seen by who listens to it
            self._ran_at = await self._rest.run()
            self._runs.set()

    async def _does_run(self) -> None:
        with trio.move_on_after(STEP_GRACE):
            await self._runs.wait()
            return
        raise self._lost(f"the destination has not run it in {STEP_GRACE:g} s")

    def _heard(self, end: _Heard, status: str | None) -> None:
        end.status, end.times = status, end.times + 1
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
        now = outlook(self._source.status, self._destination.status)
        is_lost = self._destination.status == UNHEARD and self._silence.is_complete
        return Outlook.UNHEARD if is_lost and now is Outlook.SENDING else now

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
                    if not self._is_let_go:
                        await self._hear_verdict()
                    raise self._lost("the destination's QEMU has ended")
                case Outlook.UNHEARD:
                    raise self._lost("the other side cannot be asked whether all of it is there")

    async def _hear_verdict(self) -> None:
        """Whether the source, which has not let go of the guest yet, has failed to switch."""
        ends = (None, "completed", _CUT, *_BROKEN)
        with trio.move_on_after(LAST_WORDS), suppress(*LOST):
            while not is_stuck(await self._machine.execute("query-migrate")):  # it has no event
                with trio.move_on_after(_LOOK):
                    await self._until(lambda: self._source.status in ends)
                    return

    async def _hear_last_words(self) -> None:
        with trio.move_on_after(LAST_WORDS):
            await self._until(lambda: self._outlook is not Outlook.ORPHANED)
            return
        status = self._source.status
        if status is None and not self._is_let_go:
            self._machine.must_live("migrating")
        if status in _BROKEN and not self._is_let_go:
            raise await failure(self._machine, status)
        broken = "has ended" if status is None else f"says {status!r}"
        raise self._lost(f"the source's QEMU {broken}, with memory that it had not sent")

    async def _recover(self) -> None:
        """Make the connection anew."""
        name, why = self._machine.name, ""
        self._cuts += 1
        if self._cuts > _MOST_CUTS:
            raise self._lost(f"the connection was cut {self._cuts} times")
        log.warning("machine %r: the connection of its migration is cut", name)
        with trio.move_on_after(self._recover_within):
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
                await self._tell()
                async with self._again() as uri:
                    before = self._source.times
                    await self._machine.execute("migrate", {"uri": uri, "resume": True})
                    await self._until(lambda: self._is_resumed(before))
                why = "" if self._outlook is not Outlook.CUT else "it was cut at once"
            except (CommandRefused, WireLost, Refused, *LOST) as error:
                why = str(error)
        return why

    def _is_resumed(self, before: int) -> bool:
        """Or that it is not: it is sending, or cut since."""
        if self._outlook is Outlook.CUT:
            return self._source.status == _CUT and self._source.times > before
        going = ("postcopy-active", "completed")
        return self._outlook is not Outlook.SENDING or self._source.status in going

    async def _both_are_cut(self) -> None:
        """One end may not have noticed."""
        if self._source.status != _CUT:
            await cut(self._machine)
        if self._destination.status != _CUT:
            await self._rest.cut()
        ends = (self._source, self._destination)
        await self._until(
            lambda: self._outlook is not Outlook.CUT or all(end.status == _CUT for end in ends)
        )

    def _lost(self, why: str) -> MigrationLost:
        said = self._rest.last_words() if self._destination.status is None else ""
        return MigrationLost(self._machine.name, why, said)


_CUTTING: Mapping[str, Mapping[str, Any]] = {
    "migrate-pause": {},
    "yank": {"instances": [{"type": "migration"}]},
}
