"""A guest from another supervisor that runs here, or is about to, while its memory follows.

Its source decides when it runs, and has a connection that is cut made anew; we answer, whoever
supervises here and there by then.  On record is from the beginning that memory may follow, so
that nobody ends a QEMU that the guest may be in already:

    arriving, rest    nobody has run it: it ends when its source does not come to have it run
    arrived,  rest    told to run: it is ours, and lost when the rest does not come
    arrived           all of it is here

Memory that comes needs no supervisor at its other end.  When it does not, whether QEMU says so
(`postcopy-paused`) or from another host nothing has come for `SILENCE` s, then it is given up
`Remainder.within` + 15 s after the last source has gone that spoke to us: one that says nothing
for `SILENCE` s has, and while one speaks it decides.  So of a cable that stays out nothing is left
105 s later, when `within` is 60 s; the source gives up by then (`silence`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from qmpkit.errors import QmpkitError
from qmpkit.host.tcp_quiet import quiet_for
from qmpkit.machine.machine import Machine
from qmpkit.machine.state import State
from qmpkit.operations.migration.convergence import is_switched
from qmpkit.operations.migration.incoming import Incoming
from qmpkit.operations.migration.local_end import LocalRest
from qmpkit.operations.migration.postcopy import RUNNABLE
from qmpkit.operations.migration.silence import SILENCE
from qmpkit.operations.migration.ways import listened_again, listened_at_port
from qmpkit.operations.migration.wire import Wire, WireLost, error_of
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.process.identity import boot_id
from qmpkit.qmp.errors import CommandRefused
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.moves.arrivals import Outcome, move_named
from qmpkit.supervisor.moves.conversation import Work, question
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.record import End, Remainder

__all__ = ["RestHere"]

log = logging.getLogger("qmpkit.supervisor")

_HELD = 1.0  # seconds that an answer waits for news: what is asked next waits for it
_MARGIN = 15.0  # seconds by which a source that lives gives up before us
_GOODBYE = 5.0
_LOOK = 2.0
_SOCKET = "migration"
_NONE_CAME = ("none", "setup")
_COMES = "it moves here from another supervisor, which has not had it run here yet"
_FOLLOWS = "its memory follows from another supervisor"


class RestHere:
    """What is left to come to *machine* of the move *ident*; *incoming* is None for one found.

    `hang_up` ends a conversation of before, whose connection may be dead.
    """

    def __init__(
        self,
        kept: Kept,
        machine: Machine,
        means: Means,
        ident: str,
        remainder: Remainder,
        incoming: Incoming | None = None,
    ) -> None:
        self.ident = ident
        self.begun = trio.Event()
        self.over = trio.Event()
        self.hang_up: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        self._kept = kept
        self._machine = machine
        self._means = means
        self._remainder = remainder
        self._incoming = incoming
        self._rest = LocalRest(machine, incoming)
        self._status: str | None = "unknown"
        self._times = 0
        self._talking = 0
        self._runs = False
        self._is_quiet = False
        self._said = ""
        self._outcome: Outcome | None = None
        self._changed = trio.Event()
        self._nursery: trio.Nursery
        self._can: dict[str, Work] = {
            "now": self._now,
            "beat": self._nothing,
            "run_ahead": self._run_ahead,
            "cut": self._cut,
            "recover": self._recover,
            "give_up": self._give_up,
        }

    @property
    def is_ours(self) -> bool:
        """Whether it was told to run: nothing leads back then."""
        return bool(self._kept.record.arrived)

    # One task has it come

    async def followed(self, wire: Wire | None) -> Outcome:
        """Wait until all of it is here ("runs"), or it is "lost", or came to nothing ("discarded").

        *wire*: the conversation so far, in which its source has said that it has switched.
        Cancelled, it is left as it is: whoever supervises next goes on.
        """
        kept = self._kept
        self._means.arrivals.coming[self.ident] = self
        follows = self.is_ours or wire is not None  # else it may have switched, or not
        kept.enter("migrating", _FOLLOWS if follows else _COMES)
        kept.call_off = self._call_off
        self.begun.set()
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._rest.listen, self._heard)
                if wire is not None:
                    self._nursery.start_soon(self.converse, wire)
                self._nursery.start_soon(self._alone)
                if self._port:
                    self._nursery.start_soon(self._listen_in)
                if self.is_ours:  # what is on record decides
                    self._nursery.start_soon(self._run_guest)
                await self._until(lambda: self._outcome is not None)
                with trio.move_on_after(2 * STEP_GRACE, shield=True):
                    await self._finish()
                with trio.move_on_after(_GOODBYE):
                    await self._until(lambda: not self._talking)
                self._nursery.cancel_scope.cancel()
        except BaseException:
            kept.is_left = True
            if self._incoming is not None:
                self._incoming.keep_images()
            raise
        finally:
            kept.call_off = None
            self.close()
        assert self._outcome is not None
        return self._outcome

    def _heard(self, status: str | None) -> None:
        self._status = status
        if status in (None, "failed"):
            self._ends("its QEMU has ended" if status is None else "its migration has failed")
        elif status == "completed" and self._runs and self._outcome is None:
            self._outcome = "runs"
        self._tell()

    def _ends(self, why: str) -> None:
        if self._outcome is None:
            self._said = why
            self._outcome = "lost" if self.is_ours else "discarded"
        self._tell()

    def _tell(self) -> None:
        self._times += 1
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _until(self, met: Callable[[], bool]) -> None:
        while not met():
            await self._changed.wait()

    async def _alone(self) -> None:
        """One is given up that waits for its source, which does not come."""
        while True:
            await self._until(self._waits)
            within = self._remainder.within + _MARGIN
            with trio.move_on_after(within):
                await self._until(lambda: not self._waits() or self._has_nothing)
                if not self._waits():
                    continue
                self._ends("its source has gone before anything had come")
                return
            self._ends(f"nobody has had the rest of it come for {within:g} s")
            return

    @property
    def _has_nothing(self) -> bool:
        """A source that sends, and one that has switched, has connected before."""
        return self._status in _NONE_CAME

    def _waits(self) -> bool:
        comes = self._status in RUNNABLE and not self._is_quiet
        return not self._talking and not (self._runs and comes)

    async def _listen_in(self) -> None:
        """Whether memory comes: QEMU does not tell, and may wait for it for ever."""
        while True:
            await self._until(lambda: not self._talking)
            quiet = await _quiet(self._port)
            if (is_quiet := quiet is not None and quiet >= SILENCE) is not self._is_quiet:
                self._is_quiet = is_quiet
                self._tell()
            await trio.sleep(_LOOK)

    @property
    def _port(self) -> int:
        """At which it comes from another host, else 0."""
        return int(self._remainder.address.rpartition(":")[2] or 0)

    def _call_off(self, grace: float) -> None:
        """It is declared stopped: a stop at once does not wait for the rest."""
        if grace == 0:
            self._machine.child.kill()
        else:
            self._nursery.start_soon(self._end_later)

    async def _end_later(self) -> None:
        await trio.sleep(STEP_GRACE)
        self._machine.child.kill()

    async def _run_guest(self) -> None:
        await self._until(lambda: self._status in RUNNABLE)
        self._rest.switched()
        with suppress(*LOST):  # its end is seen by who listens to it
            try:
                if self._machine.state is not State.RUNNING:  # one that was found may run
                    await self._rest.run()
            except CommandRefused as refused:
                self._ends(str(refused))
                return
            self._runs = True
            self._heard(self._status)

    async def _finish(self) -> None:
        """Write down what has come of it; what is lost is its policy's, as after a power cut."""
        kept, outcome = self._kept, self._outcome
        if outcome == "runs":
            if self._incoming is not None:
                self._machine.spec = self._incoming.spec
                self._incoming.arrived.set()
            kept.note(rest=None)
            kept.tell("received", f"all of it is here ({move_named(self.ident)})")
            await kept.write(self._means.journal)
            return
        self._machine.child.kill()
        if outcome == "lost":
            kept.tell("lost", self._said)
            end = End(Mishap.LOST, self._said, 0.0, time.time(), boot_id())
            kept.note(rest=None, phase="ending", end=end)
            with suppress(QmpkitError):
                await self._means.arrivals.put(self.ident, "lost")
            await kept.write(self._means.journal)
        with trio.move_on_after(_GOODBYE):
            await self._machine.wait()

    # What its source asks, over one connection after another

    async def converse(self, wire: Wire) -> None:
        """Answer its source until it has gone, or has been told what came of it."""
        await self._has_begun()
        if self.over.is_set():
            return
        self._talking += 1
        self._tell()
        try:
            while not await self._answered(wire):
                pass
        except WireLost as lost:
            log.warning("machine %r: the source of its move: %s", self._kept.name, lost)
        finally:
            self._talking -= 1
            self._tell()
            with trio.move_on_after(_GOODBYE, shield=True):
                await wire.close()

    async def _answered(self, wire: Wire) -> bool:
        """Whether that was the last question."""
        asked, work = await question(wire, self._can)
        try:
            answer = {"ok": await work(asked)}
        except (QmpkitError, trio.TooSlowError) as error:
            answer = {"error": error_of(error)}
        await wire.send(answer)
        return bool(answer.get("ok", {}).get("over"))

    async def _nothing(self, _: dict[str, Any]) -> dict[str, Any]:
        return {}

    async def _now(self, asked: dict[str, Any]) -> dict[str, Any]:
        """How it is, once that is news."""
        seen = asked.get("seen")
        with trio.move_on_after(_HELD):
            await self._until(lambda: self._times != seen or self._outcome is not None)
        over, status = self._outcome is not None, self._status
        status = None if over and self._outcome != "runs" else status
        how = {"status": status, "runs": self._runs, "times": self._times}
        return {**how, "said": self._last, "over": over}

    @property
    def _last(self) -> str:
        return "; ".join(filter(None, (self._said, self._rest.last_words())))[:4000]

    async def _run_ahead(self, _: dict[str, Any]) -> dict[str, Any]:
        """From here on it is ours, also when it is cut off in this moment, and runs once it can.

        What cannot be written down is found out by its QEMU.
        """
        kept, status = self._kept, self._status or ""
        if not (is_switched(status) or status in RUNNABLE):
            raise WireLost(f"it is to run before it is there: QEMU says {status!r}")
        if not self.is_ours and self._outcome is None:
            history = kept.record.history.came_up(time.time())
            up: dict[str, Any] = {"phase": "up", "history": history, "change": None}
            kept.note(arriving="", arrived=self.ident, **up)
            kept.explain("migrating", _FOLLOWS)
            kept.tended = True  # by the conversation, until a task of its own takes over
            # On record before it runs; a disk that hangs is not waited for: the source has let go.
            with trio.move_on_after(STEP_GRACE, shield=True):
                await kept.write(self._means.journal)
            self._nursery.start_soon(self._run_guest)
        return {}

    async def _cut(self, _: dict[str, Any]) -> dict[str, Any]:
        await self._bounded(self._rest.cut)
        return {}

    async def _recover(self, _: dict[str, Any]) -> dict[str, Any]:
        """Wait for its memory anew where it was waited for before (`migrate-recover`)."""
        if address := self._remainder.address:
            await self._bounded(partial(listened_at_port, self._machine, f"tcp:{address}"))
            return {"port": self._port}
        path = self._kept.home.socket(_SOCKET)
        await self._bounded(partial(listened_again, self._machine, f"unix:{path}"))
        await trio.to_thread.run_sync(path.chmod, 0o600)
        return {"path": str(path)}

    async def _bounded(self, work: Callable[[], Awaitable[object]]) -> None:
        with trio.fail_after(_GOODBYE):
            with suppress(*LOST):
                await work()

    async def _give_up(self, _: dict[str, Any]) -> dict[str, Any]:
        self._ends("its source has given it up")
        return {"outcome": self._outcome, "over": True}

    async def settled(self) -> None:
        """Its source asks what has come of it: one that nobody has run never will be."""
        await self._has_begun()
        if not self.is_ours:
            self._ends("its source goes on with it")
            await self.over.wait()

    async def _has_begun(self) -> None:
        if not self.begun.is_set():
            await self.hang_up()
            await self.begun.wait()

    def close(self) -> None:
        """It is over, or was never to follow."""
        self._means.arrivals.coming.pop(self.ident, None)
        self.begun.set()
        self.over.set()


async def _quiet(port: int) -> float | None:
    return await trio.to_thread.run_sync(quiet_for, port)
