"""Which ends are answered by a restart, when, and what a crash loop is."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpkit.machine.report import ExitCause
from qmpkit.spec.restart import Policy, Restart
from qmpkit.supervisor.policy import (
    Again,
    Cause,
    CrashLoop,
    History,
    Mishap,
    Stay,
    after_end,
    decide,
)

C, M = ExitCause, Mishap
ENDS: list[Cause] = [*C, *M]
NOW = 1_800_000_000.0
POLICIES: list[Policy] = ["never", "on-failure", "always"]

# Written out a second time: every end but those that stay down under each policy.
AGAIN: dict[Policy, set[Cause]] = {
    "never": {M.HOST_REBOOT, M.INTERRUPTED},
    "on-failure": {
        C.GUEST_PANIC,
        C.KILLED,
        C.CRASHED,
        M.START_FAILED,
        M.WATCHDOG,
        M.INTERNAL_ERROR,
        M.LOST,
        M.UNHEALTHY,
        M.HOST_REBOOT,
        M.INTERRUPTED,
    },
    "always": {end for end in ENDS if end is not C.HOST_QUIT},
}


def steady(**other: object) -> Restart:
    """A policy whose delays are exact."""
    return Restart(**{"policy": "always", "jitter": 0.0, **other})  # type: ignore[arg-type]


@pytest.mark.parametrize(("policy", "end"), list(product(POLICIES, ENDS)))
def test_every_end_under_every_policy(policy: Policy, end: Cause) -> None:
    decision = decide(Restart(policy=policy), History(), end, NOW, 0.5)
    assert isinstance(decision, Again if end in AGAIN[policy] else Stay)
    assert decision.why


@pytest.mark.parametrize(("policy", "end"), list(product(POLICIES, ENDS)))
def test_an_end_that_was_asked_for_is_never_answered(policy: Policy, end: Cause) -> None:
    decision, history = after_end(Restart(policy=policy), History(), end, NOW, 0.5, asked=True)
    assert decision == Stay("it was stopped on request")
    assert history == History(stays="it was stopped on request")


@pytest.mark.parametrize("end", ENDS)
def test_a_crash_loop_ends_only_by_a_person(end: Cause) -> None:
    looping = History(crash_loop="too often")
    decision, history = after_end(steady(), looping, end, NOW, 0.5)
    assert not isinstance(decision, Again)
    assert history.crash_loop == "too often"
    assert history.forgiven() == History()


def lived(restart: Restart, ends: list[tuple[float, float]]) -> tuple[list[float], History, bool]:
    """Delays of a machine that crashes after so many seconds up, each start taking so long."""
    history, now, delays = History().came_up(NOW), NOW, list[float]()
    for up, start in ends:
        now += up
        decision, history = after_end(restart, history, C.CRASHED, now, 0.5)
        if not isinstance(decision, Again):
            return delays, history, True
        delays.append(decision.after)
        now += decision.after + start
        history = history.starting(now).came_up(now)
    return delays, history, False


def test_the_delay_grows_up_to_its_limit() -> None:
    delays, _, looped = lived(steady(intensity=99, max_delay=10), [(5, 0)] * 6)
    assert delays == [1, 2, 4, 8, 10, 10]
    assert not looped


def test_a_delay_of_any_length_of_row_is_finite() -> None:
    history = History(row=10_000)
    restart = steady(factor=100, delay=1e300, max_delay=1e301)
    assert decide(restart, history, C.CRASHED, NOW, 0.5) == Again(1e301, "crashed; restart 1 of 5")


def test_a_quiet_period_makes_it_begin_anew() -> None:
    restart = steady(period=100, intensity=3)
    delays, history, _ = lived(restart, [(1, 0), (1, 0), (99.9, 0), (100, 0)])
    assert delays == [1, 2, 4, 1]
    assert history.row == 1
    assert len(history.restarts) == 1


def test_one_more_than_the_intensity_is_a_crash_loop() -> None:
    delays, history, looped = lived(steady(intensity=3), [(1, 0)] * 9)
    assert (len(delays), looped) == (3, True)
    assert history.crash_loop == (
        "crashed, after it was restarted 3 times within 600 s: no more than 3 are allowed"
    )


def test_no_restart_is_allowed_at_all() -> None:
    decision = decide(steady(intensity=0), History(), C.CRASHED, NOW, 0.5)
    assert isinstance(decision, CrashLoop)


def test_as_often_as_the_intensity_allows_goes_on_for_ever() -> None:
    restart = steady(intensity=2, period=100, max_delay=1)
    _, _, looped = lived(restart, [(49.5, 0)] * 50)
    assert not looped
    _, _, looped = lived(restart, [(30, 0)] * 50)
    assert looped


@pytest.mark.parametrize(("ago", "kind"), [(98.9, CrashLoop), (99, Again), (99.5, Again)])
def test_the_window_ends_with_the_restart_itself(ago: float, kind: type) -> None:
    """A delay of 1 s: what is 99 s back now is out of the last 100 s when the restart comes."""
    history = History(restarts=(NOW - ago,))
    decision = decide(steady(intensity=1, period=100), history, C.CRASHED, NOW, 0.5)
    assert isinstance(decision, kind)


def test_an_end_forgets_what_no_longer_counts() -> None:
    history = History(restarts=(NOW - 100, NOW - 99), row=7, up_since=NOW - 1, due=NOW)
    assert history.ended(100, NOW) == History(restarts=(NOW - 99,), row=7)
    looping = History(restarts=(NOW,), row=7, up_since=NOW - 100, crash_loop="too often")
    assert looping.ended(100, NOW) == History(crash_loop="too often")


def test_a_host_reboot_is_no_restart() -> None:
    decision, history = after_end(Restart(policy="never"), History(), M.HOST_REBOOT, NOW, 0.5)
    assert decision == Again(0, "the host was rebooted under it", counts=False)
    assert history.starting(NOW).restarts == ()


def test_a_host_reboot_starts_what_had_ended_but_no_crash_loop() -> None:
    restart = Restart(policy="never")
    _, ended = after_end(restart, History(), C.GUEST_SHUTDOWN, NOW, 0.5)
    assert ended.stays
    _, history = after_end(restart, ended, M.HOST_REBOOT, NOW, 0.5)
    assert history == History()
    looping = History(crash_loop="too often")
    assert after_end(restart, looping, M.HOST_REBOOT, NOW, 0.5)[1] == looping


@pytest.mark.parametrize(("random", "after"), [(0.0, 9.0), (0.5, 10.0), (1.0, 11.0)])
def test_jitter_goes_both_ways(random: float, after: float) -> None:
    restart = Restart(delay=10, jitter=0.1)
    decision = decide(restart, History(), C.CRASHED, NOW, random)
    assert isinstance(decision, Again)
    assert decision.after == pytest.approx(after)


def test_a_clock_set_back_neither_frees_nor_holds_for_ever() -> None:
    restart = steady(intensity=2)
    history = History(restarts=(NOW + 5000, NOW + 5001), row=2, up_since=NOW + 5001)
    assert isinstance(decide(restart, history, C.CRASHED, NOW, 0.5), CrashLoop)
    assert history.ended(600, NOW).restarts == (NOW, NOW)
    assert History(due=NOW + 5000).left(restart, NOW) == 60
    assert History(due=NOW + 5).left(restart, NOW) == 5
    assert History(due=NOW - 5).left(restart, NOW) == 0
    assert History().left(restart, NOW) == 0


def test_a_start_that_no_restart_led_to_is_not_counted() -> None:
    assert History(stays="it was stopped on request").starting(NOW) == History()
    assert History(due=NOW).starting(NOW) == History(restarts=(NOW,), row=1)


times = st.floats(0, 2e9)
texts = st.none() | st.text(max_size=9)
histories = st.builds(
    History,
    restarts=st.lists(times, max_size=5).map(tuple),
    row=st.integers(0, 99),
    up_since=st.none() | times,
    due=st.none() | times,
    stays=texts,
    crash_loop=texts,
)


@settings(deadline=None)
@given(histories)
def test_a_history_survives_json(history: History) -> None:
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))) == history


@pytest.mark.parametrize(
    "damage",
    [
        {"restarts": ["x"]},
        {"restarts": [float("nan")]},
        {"restarts": 5},
        {"row": -1},
        {"row": True},
        {"row": 1.5},
        {"up_since": float("inf")},
        {"due": "soon"},
        {"due": [1.0]},
        {"due": True},
        {"stays": 5},
        {"crash_loop": []},
        {"unknown": 1},
    ],
)
def test_a_damaged_history_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        History.from_dict({**History().to_dict(), **damage})


@settings(deadline=None)
@given(
    st.integers(0, 4),
    st.lists(st.tuples(st.floats(0, 300), st.floats(0, 50), st.floats(0, 1)), max_size=40),
)
def test_no_window_holds_more_restarts_than_the_intensity(
    intensity: int, life: list[tuple[float, float, float]]
) -> None:
    restart = Restart(policy="always", intensity=intensity, period=200, jitter=0.5)
    history, now, restarts = History(), NOW, list[float]()
    for up, late, random in life:
        now += up
        decision, history = after_end(restart, history, C.CRASHED, now, random)
        if not isinstance(decision, Again):
            break
        now += decision.after + late
        restarts.append(now)
        history = history.starting(now).came_up(now)
    for first in restarts:
        assert sum(first <= time < first + restart.period for time in restarts) <= intensity
