"""The rest of a guest that runs with another supervisor already: what is asked there meanwhile.

The conversation outlives its connection here, for a cable that is pulled cuts both it and the
memory's way: it is made anew by the move's number, and goes on where the other side is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from qmpkit.errors import Fault, HostLacks, SpecInvalid
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.capabilities import Setting
from qmpkit.operations.migration.errors import MigrationFailed
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.place import MovePlace, connected
from qmpkit.operations.migration.postcopy import UNHEARD
from qmpkit.operations.migration.ways import Route
from qmpkit.operations.migration.wire import Refused, Wire, WireLost, greeted

__all__ = ["COMING", "RemoteRest", "route_to"]

COMING = "coming"
"""What the other side says of a move whose end is not known yet."""

log = logging.getLogger("qmpkit.operations")

_ANSWER = 10.0
_GIVE_UP = 15.0
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
_ARRIVED = ("runs", "ran")


class RemoteRest:
    """A `Rest` at *place* of the machine *name*, whose move has the number *ident*.

    *who*: the mark of the supervisor that it was offered to.  *wire*: the conversation so far.
    `outcome`: what has come of it by the other side's word, "" while that is not known.
    `has_begun`: the source was told to switch; `was_told`: the other side to run, perhaps.
    `within`: seconds that a cut may last.
    """

    def __init__(
        self, place: MovePlace, name: str, ident: str, who: str, wire: Wire | None = None
    ) -> None:
        self.within = MigrationOptions().recover_within
        self.outcome = ""
        self.has_begun = False
        self.was_told = False
        self._place = place
        self._name = name
        self._ident = ident
        self._who = who
        self._wire = wire
        self._joined: Wire | None = None
        self._changed = trio.Event()
        self._runs = trio.Event()
        self._said = ""
        self._heard_at = math.inf

    async def refusals(self, setting: Setting) -> tuple[Fault, ...]:
        """See `Rest`."""
        assert self._wire is not None, "nothing is on its way yet"
        try:
            answer = await self._wire.ask("postcopy", capabilities=setting)
        except SpecInvalid as invalid:
            return invalid.faults
        except (WireLost, Refused, HostLacks) as lost:
            raise MigrationFailed(self._name, f"{self._place}: {lost}") from lost
        return tuple(_faults(answer.get("faults"), self._place))

    def begins(self) -> None:
        """See `Rest`."""
        self.has_begun = True

    def switched(self) -> None:
        """See `Rest`: the other side knows by what it is asked."""

    async def listen(self, heard: Callable[[str | None], None]) -> None:
        """See `Rest`: `UNHEARD` too, when nothing has been heard for as long as a cut may last."""
        try:
            await self._listen(heard)
        finally:
            self._tell()
            await self._drop(self._joined)

    async def _listen(self, heard: Callable[[str | None], None]) -> None:
        times, self._heard_at = -1, trio.current_time()
        while not self.outcome:
            if (wire := await self._at_hand(heard)) is None:
                break
            try:
                now = await wire.ask("now", seen=times, patience=_ANSWER)
            except (WireLost, Refused) as lost:
                log.warning("machine %r: %s: %s", self._name, self._place, lost)
                await self._drop(wire)
                await trio.sleep(_PAUSES[0])
                continue
            self._heard_at = trio.current_time()
            times, status = now.get("times", -1), now.get("status")
            self._said = str(now.get("said", ""))
            if now.get("runs"):
                self._runs.set()
            if status == "completed":
                self.outcome = "runs" if now.get("runs") else ""
            heard(None if status is None else str(status))
            if status is None:
                return
        if self.outcome in _ARRIVED:
            self._runs.set()
            heard("completed")
        else:
            self._said = self._said or f"{self._place} says: {self.outcome}"
            heard(None)

    def unheard(self) -> float:
        """See `Rest`: the end of another host is seen by nobody.  On this one it is."""
        return max(trio.current_time() - self._heard_at, 0.0) if self._place.host else 0.0

    async def _at_hand(self, heard: Callable[[str | None], None]) -> Wire | None:
        """The conversation, begun anew if need be; None when it has come to an end there."""
        begun, attempt = trio.current_time(), 0
        while self._joined is None:
            try:
                wire, self._wire = self._wire, None
                await self._join(wire)
            except (WireLost, Refused) as lost:
                if not attempt:
                    log.warning("machine %r: %s", self._name, lost)
                if trio.current_time() - begun > self.within:
                    heard(UNHEARD)
                await trio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
            if self.outcome:
                return None
        return self._joined

    async def _join(self, wire: Wire | None) -> None:
        """Have the other side tell from now on; by *wire*, or another connection."""
        wire = wire or await self._spoken_to()
        try:
            answer = await wire.ask("rest", id=self._ident, patience=_ANSWER)
            self._understand(answer)
        except BaseException:
            await wire.close()
            raise
        self._joined = wire
        self._tell()

    def _understand(self, answer: Mapping[str, Any]) -> None:
        if answer.get("who") != self._who:
            raise WireLost("another supervisor answers there, or one that has lost its memory")
        if (outcome := str(answer.get("outcome"))) != COMING:
            self.outcome = outcome

    async def _spoken_to(self) -> Wire:
        wire = Wire(await connected(self._place))
        try:
            await greeted(wire, on_another_host=bool(self._place.host))
        except BaseException:
            await wire.close()
            raise
        return wire

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _drop(self, wire: Wire | None) -> None:
        """It is of no more use: whoever listens begins another one."""
        if self._joined is wire:
            self._joined = None
        if wire is not None:
            await wire.close()

    async def _ask(self, what: str) -> dict[str, Any]:
        """Ask once the other side can be asked, however long that takes; WireLost at the end."""
        while (wire := self._joined) is None:
            if self.outcome:
                raise WireLost(f"it has come to its end there: {self.outcome}")
            await self._changed.wait()
        try:
            return await wire.ask(what, patience=_ANSWER)
        except WireLost:
            await self._drop(wire)
            raise

    async def run(self) -> float | None:
        """See `Rest`.  Asked again when the answer was lost, which changes nothing there."""
        self.was_told = True
        while not self.outcome:
            with suppress(WireLost):
                await self._ask("run_ahead")
                break
        await self._runs.wait()
        return time.monotonic()

    async def cut(self) -> None:
        """See `Rest`."""
        await self._ask("cut")

    @asynccontextmanager
    async def laid_again(
        self, options: MigrationOptions, route: Route | None, source: Machine
    ) -> AsyncIterator[str]:
        """See `Rest`."""
        yield route_to(self._place, await self._ask("recover"), self._name)

    def last_words(self) -> str:
        """See `Rest`."""
        return self._said

    async def give_up(self) -> str:
        """Have the other side end its part; what has come of the move, "" when it cannot be asked.

        "lost": the machine is there, and its policy's; "discarded": it is not, and never ran
        there; "runs" and "ran": all of it was there by then.
        """
        with trio.move_on_after(_GIVE_UP):
            for pause in _PAUSES:
                await self._drop(self._joined)
                try:
                    await self._join(None)
                    if not self.outcome:
                        self.outcome = str((await self._ask("give_up")).get("outcome"))
                    break
                except (WireLost, Refused) as lost:
                    log.info("machine %r: %s", self._name, lost)
                    await trio.sleep(pause)
        await self._drop(self._joined)
        return self.outcome


def route_to(place: MovePlace, answer: Mapping[str, Any], name: str) -> str:
    """Where memory goes to by what the other side has answered; MigrationFailed."""
    if place.host and type(port := answer.get("port")) is int:
        return f"tcp:{place.inet}:{port}"
    if not place.host and str(path := answer.get("path")).startswith("/"):
        return f"unix:{path}"
    raise MigrationFailed(name, f"{place}: it listens nowhere")


def _faults(plain: object, place: MovePlace) -> Iterable[Fault]:
    for it in plain if isinstance(plain, list) else ():
        if isinstance(it, list) and len(it) == 3:
            path, message, hint = map(str, it)
            yield Fault(path, f"at {place}: {message}", hint)
