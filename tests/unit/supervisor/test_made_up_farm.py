"""A made-up farm: policy, order and admission together, under everything that can happen.

A model of a supervisor that only asks the pure modules.  What must never happen is held at
every step; at the end, when nothing goes wrong any more, everything that can be up is up.
"""

from __future__ import annotations

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from qmpkit.machine.report import ExitCause
from qmpkit.spec.restart import Restart
from qmpkit.supervisor.admission import Demand, Host, Limits, Pool, Waiting, admit
from qmpkit.supervisor.order import Needs, Seen, Standing, ready_to_start, start_order
from qmpkit.supervisor.policy import Cause, History, Mishap, after_end
from tests.sizes import MADE_UP_FARMS

NAMES = ("a", "b", "c")
ROOM = 1000
LIMITS = Limits(starts=2, overtakes=3)
PERIOD = 100.0
ENDS: tuple[Cause, ...] = (
    ExitCause.GUEST_SHUTDOWN,
    ExitCause.GUEST_PANIC,
    ExitCause.CRASHED,
    ExitCause.KILLED,
    Mishap.UNHEALTHY,
    Mishap.WATCHDOG,
)
POLICIES = st.builds(
    Restart,
    policy=st.sampled_from(["never", "on-failure", "always"]),
    delay=st.sampled_from([0.0, 5.0]),
    max_delay=st.just(20.0),
    jitter=st.sampled_from([0.0, 0.5]),
    intensity=st.integers(0, 3),
    period=st.just(PERIOD),
)


@attrs.define
class Machine:
    needs: Needs
    restart: Restart
    memory: int
    declared: bool = False
    phase: str = "down"  # queued, starting, up
    history: History = attrs.field(factory=History)
    starts: list[float] = attrs.field(factory=list)  # by its policy

    @property
    def wants(self) -> bool:
        """Whether it is to come up by itself, at once or when its delay is over."""
        held = self.history.crash_loop is not None or self.history.stays is not None
        return self.declared and self.phase == "down" and not held


class MadeUpFarm(RuleBasedStateMachine):
    now = 1000.0
    queue: list[Waiting]

    @initialize(data=st.data())
    def made(self, data: st.DataObject) -> None:
        self.queue = []
        self.machines: dict[str, Machine] = {}
        for place, name in enumerate(NAMES):
            before = st.sets(st.sampled_from(NAMES[:place])) if place else st.just(set())
            needs = Needs(
                after=tuple(sorted(data.draw(before))), requires=tuple(sorted(data.draw(before)))
            )
            memory = data.draw(st.sampled_from([100, 300, 600]))
            self.machines[name] = Machine(needs, data.draw(POLICIES), memory)
        self.order = start_order({name: it.needs for name, it in self.machines.items()})

    # What its owner does

    @rule(name=st.sampled_from(NAMES))
    def declare_running(self, name: str) -> None:
        machine = self.machines[name]
        machine.declared = True
        if machine.phase == "down":
            machine.history, machine.starts = machine.history.forgiven(), []

    @rule(name=st.sampled_from(NAMES))
    def declare_stopped(self, name: str) -> None:
        machine = self.machines[name]
        machine.declared = False
        if machine.phase == "queued":
            machine.phase = "down"
            self.queue = [it for it in self.queue if it.name != name]
        elif machine.phase != "down":
            self.end(name, ExitCause.HOST_QUIT)

    # What the supervisor does

    @rule()
    def look(self) -> None:
        for name, machine in self.machines.items():
            if machine.wants and not machine.history.left(machine.restart, self.now):
                machine.phase = "queued"
                self.queue.append(Waiting(name, Demand(memory=machine.memory)))
        ready = ready_to_start(
            self.order, {n: m.needs for n, m in self.machines.items()}, self.seen()
        )
        mine = [it for it in self.queue if it.name in ready.now]
        demands = {n: Demand(memory=m.memory) for n, m in self.machines.items()}
        up = {n: demands[n] for n, m in self.machines.items() if m.phase == "up"}
        starting = {n: demands[n] for n, m in self.machines.items() if m.phase == "starting"}
        room = Host(memory=Pool(ROOM, ROOM - self.taken("up")), cpus=Pool.whole(100))
        admission = admit(room, up, starting, mine, LIMITS)
        later = {it.name: it for it in admission.queue}
        self.queue = [later.get(it.name, it) for it in self.queue if it.name not in admission.now]
        for name in admission.now:
            self.start(name)

    def start(self, name: str) -> None:
        machine = self.machines[name]
        assert machine.declared
        assert all(self.machines[other].phase == "up" for other in machine.needs.requires)
        if machine.history.due is not None:
            machine.starts.append(self.now)
        machine.phase, machine.history = "starting", machine.history.starting(self.now)

    # What happens

    @rule(name=st.sampled_from(NAMES), well=st.sampled_from([True, True, True, False]))
    def started(self, name: str, well: bool) -> None:
        machine = self.machines[name]
        if machine.phase == "starting" and well:
            machine.phase, machine.history = "up", machine.history.came_up(self.now)
        elif machine.phase == "starting":
            self.end(name, Mishap.START_FAILED)

    @rule(cause=st.sampled_from(ENDS), place=st.integers(0, 2))
    def ended(self, cause: Cause, place: int) -> None:
        if up := [name for name, machine in self.machines.items() if machine.phase == "up"]:
            self.end(up[place % len(up)], cause)

    @rule(name=st.sampled_from(NAMES), cause=st.sampled_from(ENDS), times=st.integers(1, 6))
    def keeps_ending(self, name: str, cause: Cause, times: int) -> None:
        for _ in range(times):
            self.look()
            self.started(name, True)
            if self.machines[name].phase == "up":
                self.end(name, cause)
            self.now += 6.0

    @rule(seconds=st.sampled_from([0.1, 3.0, 30.0, 150.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def supervisor_dies_and_the_next_goes_on(self) -> None:
        for name, machine in self.machines.items():
            machine.history = History.from_dict(machine.history.to_dict())
            if machine.phase == "starting":
                self.end(name, Mishap.INTERRUPTED)
            elif machine.phase == "queued":
                machine.phase = "down"
        self.queue = []

    @rule()
    def host_reboots(self) -> None:
        self.supervisor_dies_and_the_next_goes_on()
        for name, machine in self.machines.items():
            if machine.phase == "up":
                self.end(name, Mishap.HOST_REBOOT)

    def end(self, name: str, cause: Cause) -> None:
        machine = self.machines[name]
        machine.phase = "down"
        _, machine.history = after_end(
            machine.restart, machine.history, cause, self.now, 0.5, asked=not machine.declared
        )

    # What must hold

    def seen(self) -> dict[str, Seen]:
        return {name: Seen(self.standing(machine)) for name, machine in self.machines.items()}

    def standing(self, machine: Machine) -> Standing:
        if not machine.declared:
            return Standing.DOWN
        if machine.phase == "down":
            return Standing.STARTING if machine.wants else Standing.FAILED
        words = {"queued": Standing.WANTED, "starting": Standing.STARTING, "up": Standing.UP}
        return words[machine.phase]

    def taken(self, *phases: str) -> int:
        return sum(m.memory for m in self.machines.values() if m.phase in phases)

    @invariant()
    def what_is_stopped_stays_so(self) -> None:
        assert all(m.declared or m.phase == "down" for m in self.machines.values())

    @invariant()
    def no_more_is_promised_than_there_is(self) -> None:
        assert self.taken("starting", "up") <= ROOM
        assert sum(m.phase == "starting" for m in self.machines.values()) <= LIMITS.starts

    @invariant()
    def nobody_is_restarted_too_often(self) -> None:
        for machine in self.machines.values():
            for first in machine.starts:
                within = [time for time in machine.starts if first <= time < first + PERIOD]
                assert len(within) <= machine.restart.intensity

    @invariant()
    def a_crash_loop_waits_for_a_person(self) -> None:
        for machine in self.machines.values():
            assert machine.history.crash_loop is None or machine.phase == "down"

    @invariant()
    def nobody_is_overtaken_for_ever(self) -> None:
        most = LIMITS.overtakes + len(NAMES)
        assert all(waiting.overtaken <= most for waiting in self.queue)

    def teardown(self) -> None:
        """When nothing goes wrong any more, all that can be up is up."""
        if not hasattr(self, "machines"):
            return
        for machine in self.machines.values():
            machine.memory = 100  # there is room for all of them
        self.queue = [attrs.evolve(it, demand=Demand(memory=100)) for it in self.queue]
        for _ in range(4 * len(NAMES)):
            self.now += 40.0
            self.look()
            for name in NAMES:
                self.started(name, True)
        for name, machine in self.machines.items():
            assert machine.phase == "up" or not self.can_be_up(name), name

    def can_be_up(self, name: str) -> bool:
        machine = self.machines[name]
        at_rest = machine.phase == "down" and not machine.wants
        return not at_rest and all(self.can_be_up(other) for other in machine.needs.requires)


TestMadeUpFarm = MadeUpFarm.TestCase
TestMadeUpFarm.settings = settings(
    max_examples=MADE_UP_FARMS, stateful_step_count=40, deadline=None
)
