"""One running VM: a process, its QMP session, and the state they add up to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from qmpkit._trio import ServiceNursery
from qmpkit.errors import MachineDied, MachineGone
from qmpkit.machine.ledger import Ledger, Unwritten
from qmpkit.machine.report import MOVED, ExitCause, ExitReport, judge
from qmpkit.machine.shares import Shares
from qmpkit.machine.state import EVENTS, State, Trigger, state_of, step, trigger_of
from qmpkit.machine.turn import Turn
from qmpkit.process.child import ChildLike
from qmpkit.process.escalate import stop_child
from qmpkit.process.status import ExitStatus
from qmpkit.qmp.errors import MonitorGarbled, MonitorLost
from qmpkit.qmp.events import Event, Subscription
from qmpkit.qmp.session import Session
from qmpkit.spec.boards import board_of
from qmpkit.spec.facts import Facts
from qmpkit.spec.machine import MachineSpec

__all__ = ["Expected", "Graces", "Machine", "StateObserver", "check_grace"]

log = logging.getLogger("qmpkit.machine")

# A dead QEMU's monitor and its process end within milliseconds of each other; the bound
# only keeps a machine with a wedged peer from hanging whoever asks for its report.
_ENDS_MEET = 5.0
# Events are taken as they come; a bound that a storm of I/O errors cannot reach meanwhile.
_NEVER_FULL = 100_000


_DOWN = (State.SHUTDOWN, State.PANICKED, State.GONE)

# Called with the new state and what brought it; must not block.
StateObserver = Callable[[State, str], None]


def check_grace(name: str, seconds: float) -> None:
    """Refuse a bound that cannot be waited for, before anything is done."""
    if not seconds >= 0:
        raise ValueError(f"{name}={seconds!r}: it is a number of seconds, 0 or more")


def _grace(default: float) -> float:
    def check(_: Graces, attribute: attrs.Attribute[float], value: float) -> None:
        check_grace(attribute.name, value)

    return attrs.field(default=default, validator=check)


@attrs.frozen
class Graces:
    """Seconds each step of a stop is given before the next, harder one."""

    quit: float = _grace(10.0)
    term: float = _grace(3.0)
    kill: float = _grace(5.0)

    @property
    def total(self) -> float:
        """The longest a whole stop can take."""
        return self.quit + self.term + self.kill


class Machine:
    """The core that operations work on; made by `qmpkit.machine.launch.launched`.

    `spec` is the spec as it was resolved (versioned machine type, variables
    expanded), `argv` the exact command, `streams` the host ends of its character
    devices, `services` a nursery for tasks that live as long as the machine,
    `on_state` is told of every change of state.  `changing` is held by whoever changes
    what a restart would build, and `ledger` is told of it; `shares` serves its directories.
    """

    def __init__(
        self,
        spec: MachineSpec,
        facts: Facts,
        argv: Sequence[str],
        child: ChildLike,
        qmp: Session,
        streams: Mapping[str, trio.abc.Stream],
        services: ServiceNursery,
        state: State,
        graces: Graces = Graces(),
    ) -> None:
        self.spec = spec
        self.facts = facts
        self.argv = tuple(argv)
        self.child = child
        self.qmp = qmp
        self.streams = streams
        self.services = services
        self.state = state
        self.graces = graces
        self.report: ExitReport | None = None
        self.started_at = trio.current_time()
        self.on_state: StateObserver | None = None
        self.is_down = False
        self.halted = False  # its owner has paused it, whatever QEMU makes of that as it migrates
        self.maimed = ""  # why its QEMU neither migrates, nor is saved, nor ends in order any more
        self.ledger: Ledger = Unwritten()
        self.changing = Turn(spec.name)
        self.shares = Shares(self)
        self._expected: set[Expected] = set()
        self._ends_meet_by: float | None = None
        self.stop_asked = False  # somebody ends QEMU, or has
        self._has_moved = False
        self._decided = trio.Event()
        self._decided.set()
        self._shutdown_reason: str | None = None
        self._panic: Mapping[str, Any] | None = None
        self.lifecycle = qmp.subscribe(*EVENTS, buffer=_NEVER_FULL)

    @property
    def name(self) -> str:
        """The machine's name, as in its spec."""
        return self.spec.name

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
        oob: bool = False,
    ) -> Any:
        """Send one QMP command and return what QEMU returned.

        Raises CommandRefused when QEMU answers with an error, MachineGone when the
        machine has ended, MachineDied when it ended out of the blue, MonitorLost
        when only the connection broke.  Cancelled, the command's outcome is unknown.
        """
        self.must_live(command)
        try:
            return await self.qmp.execute(command, arguments, fds=fds, oob=oob)
        except MonitorLost as lost:
            await self.explain(lost, command)
            raise

    def must_live(self, asked: str) -> None:
        """Raise MachineGone or MachineDied when the machine has ended before *asked*."""
        if (ended := self.ended(asked)) is not None:
            raise ended

    def ended(self, asked: str) -> MachineGone | MachineDied | None:
        """The error for what is *asked* of a machine that has ended; None as long as it lives."""
        return None if self.report is None else self._ended_error(self.report, asked)

    async def explain(self, lost: MonitorLost, asked: str) -> None:
        """Raise MachineGone or MachineDied when the machine's end is what *lost* comes from.

        Returns when QEMU lives on without its monitor.
        """
        report = await self.verdict()
        if report is not None:
            raise self._ended_error(report, asked) from lost

    async def verdict(self) -> ExitReport | None:
        """How the machine has ended, for whoever saw one of its channels end.

        A channel ends some milliseconds before the process is seen to.  None when QEMU
        lives on without it; only the first who ask wait for that, up to 5 s.
        """
        if self._ends_meet_by is None:
            self._ends_meet_by = trio.current_time() + _ENDS_MEET
        with trio.move_on_at(self._ends_meet_by):
            await self.wait()
        return self.report

    def subscribe(
        self, *names: str, where: Mapping[str, Any] | None = None, buffer: int = 1000
    ) -> Subscription:
        """Events of these names (all without any) whose data match *where*.

        Raises MachineGone or MachineDied when the machine has ended, as does reading.
        What cannot wait for that verdict says MonitorLost: `next_nowait`, and entering
        the block in the milliseconds before the end is known.
        """
        self.must_live("following its events")
        subscription = self.qmp.subscribe(*names, where=where, buffer=buffer)
        subscription.explain = self._explain_events
        return subscription

    async def wait(self) -> ExitReport:
        """Wait for the machine's end, whatever brings it, and tell how it ended."""
        await self.reached(State.GONE)
        assert self.report is not None
        return self.report

    async def reached(self, *states: State) -> State:
        """Wait until the machine is in one of *states* and return it.

        Raises MachineGone or MachineDied when it ends first, unless GONE is awaited.
        """
        with self.expecting(*states) as expected:
            return await expected.wait()

    @contextmanager
    def expecting(self, *states: State) -> Iterator[Expected]:
        """Watch out for *states* from now on: one that passes at once is not missed.

        For a command that brings a state about: a guest may panic in the millisecond
        after `cont`, and its RUNNING would be over before anybody looks.
        """
        expected = Expected(self, states)
        expected._see(self.state)
        self._expected.add(expected)
        try:
            yield expected
        finally:
            self._expected.discard(expected)

    async def follow(self) -> None:
        """Keep `state` and `report` true until the process has ended; one service runs this.

        The caller has entered `lifecycle` before anything could happen.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_events)
            status = await self.child.wait()
            # What QEMU still had to say lies in the socket: read it before judging.
            nursery.cancel_scope.deadline = trio.current_time() + _ENDS_MEET
        self._finish(status)

    def found(self, status: str, age: float) -> None:
        """Take over a QEMU with this run state (`query-status`) that was started *age* s ago.

        To be called before `follow` runs.  What ended the guest is only known by the
        run state: the events came when nobody listened.
        """
        self.state = state_of(status)
        self.started_at = trio.current_time() - age
        if self.state is State.SHUTDOWN:
            # Or a reboot with `no_reboot`: QEMU does not tell the two apart afterwards.
            self._shutdown_reason = "guest-shutdown"
        if self.state is State.PANICKED:
            self._panic = {}

    def loaded(self) -> None:
        """A saved state is in it, and it stands still: QEMU has no event for that."""
        self._enter(step(self.state, Trigger.STOP), "its saved state is loaded")

    def moved(self) -> None:
        """Its guest is another QEMU's now: however this one ends, or has ended, that is why."""
        self._has_moved = self.stop_asked = True
        if self.report is not None:
            self.report = attrs.evolve(self.report, cause=ExitCause.HOST_QUIT, reason=MOVED)

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Within, it is open whether its end is that of its guest: `decided` waits for that."""
        before, self._decided = self._decided, trio.Event()
        try:
            yield
        finally:
            self._decided.set()
            self._decided = before

    async def decided(self) -> ExitReport:
        """How it ended, once it has, and it is known whether its guest lives on elsewhere."""
        await self.wait()
        await self._decided.wait()
        assert self.report is not None
        return self.report

    async def stop(self, graces: Graces | None = None) -> ExitReport:
        """End QEMU now: `quit`, then SIGTERM, then SIGKILL, each after its grace.

        *graces*: other ones than the machine was started with.

        The guest is not asked; see `qmpkit.operations.power.shutdown` for that.
        Safe to call again and in cleanup (callers shield it, bounded by `graces.total`).
        """
        self.stop_asked = True
        graces = graces or self.graces
        await stop_child(
            self.child,
            ask=self._ask_to_quit,
            quit_grace=graces.quit,
            term_grace=graces.term,
            kill_grace=graces.kill,
        )
        return await self.wait()

    async def kill(self) -> ExitReport:
        """End QEMU with SIGKILL: what the guest had not written is lost."""
        self.stop_asked = True
        self.child.kill()
        return await self.wait()

    async def _explain_events(self, lost: MonitorLost) -> None:
        await self.explain(lost, "following its events")

    async def _ask_to_quit(self) -> None:
        if not self.maimed:
            await self.qmp.execute("quit")
            return
        await self.qmp.execute("stop")  # which has it write what it had kept for later
        self.child.kill()

    async def _follow_events(self) -> None:
        try:
            async for event in self.lifecycle:
                self._take(event)
        except (MonitorLost, MonitorGarbled) as lost:
            log.debug("%s", lost)

    def _take(self, event: Event) -> None:
        trigger = trigger_of(event.name, event.data)
        if trigger is Trigger.SHUTDOWN and self.state is not State.SHUTDOWN:
            # Of a guest that is down already, what QEMU says next is how QEMU itself ends.
            self._shutdown_reason = event.data.get("reason")
        if trigger is Trigger.GUEST_PANICKED:
            self._panic = event.data.get("info") or {}
        if trigger is not None:
            state = step(self.state, trigger)
            if self.state in _DOWN and state not in _DOWN:
                self._shutdown_reason = self._panic = None  # it was brought back to life
            self._enter(state, event.data.get("reason") or event.name)

    def _enter(self, state: State, cause: str) -> None:
        if state is self.state:
            return
        self.state = state
        if self.on_state is not None:
            self.on_state(state, cause)
        for expected in self._expected:
            expected._see(state)

    def _finish(self, status: ExitStatus) -> None:
        board = board_of(self.spec.machine, self.spec.arch)
        cause = judge(
            asked=self.stop_asked,
            reason=self._shutdown_reason,
            panicked=self._panic is not None,
            status=status,
            silent_poweroff=board is not None and board.silent_poweroff,
        )
        if self._has_moved:
            cause = ExitCause.HOST_QUIT
        self.report = ExitReport(
            machine=self.name,
            cause=cause,
            status=status,
            uptime=trio.current_time() - self.started_at,
            reason=MOVED if self._has_moved else self._shutdown_reason,
            panic=self._panic,
            stderr_tail=self.child.stderr_tail,
        )
        self._enter(step(self.state, Trigger.ENDED), str(self.report))

    def _ended_error(self, report: ExitReport, asked: str) -> MachineGone | MachineDied:
        if report.expected:
            return MachineGone(self.name, asked, report)
        return MachineDied(report)


class Expected:
    """The state that somebody waits for; made by `Machine.expecting`."""

    def __init__(self, machine: Machine, states: Collection[State]) -> None:
        self._machine = machine
        self._states = states
        self._met: State | None = None
        self._seen = trio.Event()

    async def wait(self) -> State:
        """The first of the states that was met; MachineGone or MachineDied at the end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._seen.wait()
        if self._met is None:
            report = self._machine.report
            assert report is not None
            raise self._machine._ended_error(report, f"reaching the state {_either(self._states)}")
        return self._met

    def _see(self, state: State) -> None:
        if self._seen.is_set():
            return
        if state in self._states:
            self._met = state
        if state in self._states or state is State.GONE:
            self._seen.set()


def _either(states: Collection[State]) -> str:
    return " or ".join(state.value for state in states)
