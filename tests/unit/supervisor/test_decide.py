"""What a machine's end is answered with, and how an end is known that nobody saw."""

from __future__ import annotations

import attrs
import pytest

from qmpkit.machine.report import ExitCause
from qmpkit.process.identity import Standing
from qmpkit.spec.restart import Policy, Restart
from qmpkit.supervisor.adopt import end_found
from qmpkit.supervisor.decide import Again, CrashLoop, Stay, decide
from qmpkit.supervisor.record import End
from tests.unit.supervisor.test_journal import record

POLICY = Restart(policy="on-failure", delay=1, factor=2, max_delay=5, jitter=0, intensity=4)
NOW = 1_000_000.0


def end(cause: ExitCause | None, uptime: float = 10.0) -> End:
    return End(cause, "it ended", uptime, NOW, "boot")


GOOD = (ExitCause.GUEST_SHUTDOWN, ExitCause.GUEST_RESET)
BAD = (ExitCause.CRASHED, ExitCause.KILLED, ExitCause.GUEST_PANIC, None)


@pytest.mark.parametrize("cause", [*GOOD, *BAD], ids=str)
@pytest.mark.parametrize("policy", ["never", "on-failure", "always"])
def test_the_policies(policy: Policy, cause: ExitCause | None) -> None:
    restart = attrs.evolve(POLICY, policy=policy)
    again = policy == "always" or (policy == "on-failure" and cause in BAD)
    expected = Again(1.0) if again else Stay()
    assert decide(record(restart=restart), end(cause)) == expected


@pytest.mark.parametrize("policy", ["never", "on-failure", "always"])
def test_what_the_owner_wanted_is_never_undone(policy: Policy) -> None:
    restart = attrs.evolve(POLICY, policy=policy)
    assert decide(record(restart=restart), end(ExitCause.HOST_QUIT)) == Stay()
    stopped = record(restart=restart, declared="stopped")
    assert decide(stopped, end(ExitCause.CRASHED)) == Stay()
    interrupted = attrs.evolve(end(None), interrupted=True)
    assert decide(stopped, interrupted) == Stay()
    assert decide(record(restart=restart), interrupted) == Again(0.0)


def test_each_restart_comes_later_until_it_is_a_loop() -> None:
    it, waits = record(restart=POLICY), []
    while isinstance(decision := decide(it, end(ExitCause.CRASHED)), Again):
        waits.append(decision.after)
        it = it.with_restart_at(NOW)
    assert waits == [1, 2, 4, 5]
    assert decision == CrashLoop(4, 600)
    long_ago = attrs.evolve(it, restarts=(NOW - 601,) * 4)
    assert decide(long_ago, end(ExitCause.CRASHED)) == Again(1.0)


def test_the_same_end_is_answered_alike_and_machines_differently() -> None:
    policy = attrs.evolve(POLICY, jitter=0.5)
    crash = end(ExitCause.CRASHED)
    answers = [decide(record(name, restart=policy), crash) for name in "aab"]
    assert answers[0] == answers[1] != answers[2]


# An end that nobody saw


@pytest.mark.parametrize("standing", [Standing.GONE, Standing.REUSED, Standing.ZOMBIE])
@pytest.mark.parametrize("phase", ["starting", "up", "ending", "down"])
@pytest.mark.parametrize("declared", ["running", "paused", "stopped"])
def test_the_end_of_one_that_is_not_alive(phase: str, declared: str, standing: Standing) -> None:
    seen = end(ExitCause.GUEST_SHUTDOWN)
    it = record(phase=phase, declared=declared, end=seen)
    found = end_found(it, standing, "boot")
    match phase:
        case "ending" | "down":
            assert found == seen
        case "starting":
            assert found.interrupted
        case _:
            wanted = ExitCause.HOST_QUIT if declared == "stopped" else ExitCause.CRASHED
            assert found.cause is wanted


@pytest.mark.parametrize("phase", ["starting", "up", "ending", "down"])
def test_after_a_reboot_all_were_interrupted(phase: str) -> None:
    standing = Standing.GONE if phase == "down" else Standing.REBOOTED
    found = end_found(record(phase=phase, end=end(ExitCause.CRASHED)), standing, "another")
    assert found.interrupted
    assert found.why == "the host was rebooted"
