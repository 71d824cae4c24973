"""One kept machine, as its supervisor sees it: what is declared, what is observed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, JournalFailed, MachineGone, SpecInvalid
from qmpkit.machine.keep import Home
from qmpkit.machine.report import ExitReport
from qmpkit.machine.state import State
from qmpkit.process.places import who_is_at
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.errors import LeftAlone
from qmpkit.supervisor.events import EventLog
from qmpkit.supervisor.health import Verdict
from qmpkit.supervisor.journal import Journal, Ticket
from qmpkit.supervisor.record import Declared, End, Record
from qmpkit.supervisor.table import Row
from qmpkit.vm import VM

__all__ = ["STARTS", "Kept"]

log = logging.getLogger("qmpkit.supervisor")


STARTS = "it is to start"
"""Why a machine is queued that nothing holds up yet."""


class Kept:
    """A machine that outlives its supervisor; `Supervisor.ensure` gives it.

    `vm` is the machine as long as its monitor answers, and another one after each
    restart.  `state` is what is observed: the states of `State`, or "queued", "starting",
    "saved" (it is down, and goes on where it was when it is started), "migrating" (its guest
    runs in another process already, or came here, and the rest of its memory follows; or it was
    coming so when its supervisor died, and `cause` says that it has not run here yet), "silent"
    (its QEMU lives and says nothing), "unreachable" (it has no sockets any
    more, or another machine's), "blocked" (it requires one that will not come up by
    itself), "arriving" (another supervisor sends it), "unknown" (it may run at another one, see
    `Supervisor.settle`), "restarting" (it waits for its policy), "crash-loop"
    and "failed" (it waits for a person).  `not_durable` is why the last change could
    not be written down, None when it was.  `health` is what its checks have come to.
    """

    def __init__(self, record: Record, home: Home, events: EventLog) -> None:
        self.record = record
        self.home = home
        self.vm: VM | None = None
        self.report: ExitReport | None = None
        self.state = "gone"
        self.cause = "" if record.end is None else record.end.why
        self.not_durable: JournalFailed | None = None
        self.changing = trio.Lock()  # held by whoever changes it: `turn`
        self.is_forgotten = False
        self.tended = False  # a task keeps it as declared
        self.is_alone = False  # its supervisor has ended meanwhile
        self.adopted = False
        self.is_moving = False  # to another process, which may become it
        self.call_off: Callable[[float], None] | None = None  # ends a move, by a stop's grace
        self.is_left = False  # it comes from another one, and is for the next of us to go on with
        self.has_left = False  # another supervisor has it
        self.found_out: bool | None = None  # whether it is here, of one that was moving
        self.declarations = 0  # how often it was declared something while a task keeps it
        self.let_run = 0  # the last of them by which its guest was let run
        self.health: Verdict | None = None  # None: it has no checks, or is not up
        self.refusal: Exception | None = None
        self.grace: float | None = None
        self.entry: Ticket | None = None  # of the declaration that it is started by
        self.on_change: Callable[[Kept], object] = lambda kept: None
        self._events = events
        self._entered = trio.current_time()
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Kept {self.name!r} {self.state}, declared {self.declared}>"

    @property
    def name(self) -> str:
        """The machine's name, as in its spec."""
        return self.record.name

    @property
    def declared(self) -> Declared:
        """What its owner wants: "running", "paused" or "stopped"."""
        return self.record.declared

    @property
    def spec(self) -> MachineSpec:
        """The spec it is started from: versioned machine type, variables expanded."""
        return self.record.spec

    @property
    def restart(self) -> Restart:
        """What happens when it ends without being asked to."""
        return self.record.restart

    @property
    def end(self) -> End | None:
        """How it ended last."""
        return self.record.end

    @property
    def pid(self) -> int | None:
        """QEMU's process id; None while there is none."""
        identity = self.record.identity
        return None if identity is None else identity.pid

    @property
    def member(self) -> str:
        """Who it is in the networks of its farm: one of the two processes that it may be."""
        return who_is_at(self.home.sockets, self.name)

    @property
    def sockets(self) -> set[Path]:
        """The directories of its sockets, and of the process's that it is moving to."""
        heir = self.record.heir
        return {self.home.sockets} if heir is None else {self.home.sockets, Path(heir.sockets)}

    @property
    def turn(self) -> AbstractAsyncContextManager[None]:
        """`async with kept.turn:` one change at a time; SpecInvalid when it was forgotten by then.

        Where it is written down again, nobody would look after it.
        """
        return self._turn()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self.changing:
            if self.is_forgotten:
                fault = Fault("name", "no kept machine has it: it was forgotten meanwhile")
                raise SpecInvalid([fault], f"machine {self.name!r}")
            yield

    async def wait_running(self) -> None:
        """Wait until the guest's vCPUs run, through restarts.

        Raises MachineGone when it has come to rest instead: stopped, ended for good,
        in a crash loop.  LeftAlone when its supervisor ends before.
        """
        await self.until(lambda: self.state == State.RUNNING.value or not self.tended)
        if self.state != State.RUNNING.value:
            self.must_not_be_alone("runs")
            raise MachineGone(self.name, "reaching the state running", self.report)

    async def wait_rest(self) -> End | None:
        """Wait until it is down and will not start by itself; how it ended.

        Raises LeftAlone when its supervisor ends before.
        """
        await self.until(lambda: not self.tended)
        self.must_not_be_alone("has come to rest")
        return self.end

    def must_not_be_alone(self, awaited: str) -> None:
        """Raise LeftAlone when its supervisor ended before it could be seen to do that."""
        if self.is_alone:
            raise LeftAlone(self.name, awaited)

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait until a condition on this object is met."""
        await trio.lowlevel.checkpoint()
        while not met():
            await self._changed.wait()

    def row(self) -> Row:
        """Its row in the table."""
        return Row(
            machine=self.name,
            state=self.state,
            since=trio.current_time() - self._entered,
            cause=self.cause,
            pid=self.pid,
            accel=self.record.facts.accel,
            declared=self.declared,
            health=None if self.health is None else type(self.health).__name__.lower(),
        )

    # What its supervisor's tasks do

    def enter(self, state: str, cause: str) -> None:
        """Note and tell what is observed; nothing is told twice."""
        if (state, cause) != (self.state, self.cause):
            self.state, self.cause, self._entered = state, cause, trio.current_time()
            self._events.tell(self.name, state, cause)
        self.notify()

    def explain(self, state: str, cause: str) -> None:
        """Note why it is in *state*; told only when it was in another: reasons come and go."""
        if self.state != state or self.cause == STARTS:
            self.enter(state, cause)
        else:
            self.cause = cause

    def tell(self, what: str, why: str) -> None:
        """Tell of something that is no state of it."""
        self._events.tell(self.name, what, why)

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self.on_change(self)

    def attach(self, vm: VM, cause: str, *, adopted: bool = False) -> None:
        """Its monitor answers; *adopted*: of a QEMU that was up before."""
        self.vm, self.adopted, self.health = vm, adopted, None
        self.enter(vm.state.value, cause)
        vm.machine.on_state = lambda state, why: self.enter(state.value, why)
        vm.machine.shares.on_lost = lambda why: self.tell("share-lost", why)
        for why in vm.machine.shares.lost.values():
            self.tell("share-lost", why)

    def detach(self) -> None:
        """It has ended, or its monitor has."""
        if self.vm is not None:
            self.report = self.vm.report or self.report
        self.vm = self.health = None

    def note(self, **changes: Any) -> None:
        """Change what is on record; in memory, until it is written."""
        self.record = attrs.evolve(self.record, **changes)
        self.notify()

    async def write(self, journal: Journal) -> bool:
        """Write the record; a journal that cannot is told of, and keeps nobody from going on."""
        return await self.written(journal.post(self.record))

    async def written(self, entry: Ticket) -> bool:
        """`write`, of a record that is on its way."""
        try:
            await entry.durable()
        except JournalFailed as failed:
            log.warning("machine %r: this is not durable: %s", self.name, failed)
            self.not_durable = failed
            self.tell("not-durable", str(failed))
            return False
        self.not_durable = None
        return True
