"""Policies: what is to be done with a guest that writes faster than it is sent."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit import Round, SpecInvalid, Step
from qmpkit.operations.migration.convergence import (
    Policy,
    adjusted,
    fast,
    live,
    policy_of,
    postcopy,
    read_round,
)

NOW = Round(number=1, seconds=0.0, remaining=100, total=1000, transferred=900)


def at(**changes: Any) -> Round:
    return attrs.evolve(NOW, **changes)


def test_live_doubles_the_downtime_every_second_pass_up_to_its_bound() -> None:
    policy = live(downtime=0.3, max_downtime=2.0)
    limits = [policy(at(number=number)).downtime for number in range(1, 9)]
    assert limits == [0.3, 0.3, 0.6, 0.6, 1.2, 1.2, 2.0, 2.0]


@given(st.integers(1, 10_000), st.floats(0.001, 100), st.floats(1, 100))
def test_live_never_leaves_its_bounds(number: int, downtime: float, factor: float) -> None:
    step = live(downtime=downtime, max_downtime=downtime * factor)(at(number=number))
    assert step.downtime is not None and downtime <= step.downtime <= downtime * factor
    assert not step.paused and not step.give_up


def test_live_gives_up_when_it_is_told_when() -> None:
    policy = live(downtime=0.3, max_downtime=2.0, give_up_after=10)
    assert policy(at(seconds=10.0)).give_up == ""
    assert policy(at(seconds=10.1)).give_up == "it has not converged in 10 s"


def test_fast_stops_the_guest_at_its_deadline() -> None:
    policy = fast(deadline=5.0)
    assert [policy(at(seconds=s)).paused for s in (0.0, 4.9, 5.0, 60.0)] == [
        False,
        False,
        True,
        True,
    ]


def test_a_policy_has_a_name_or_is_a_function() -> None:
    def own(now: Round) -> Step:
        return Step(give_up="no")

    steers = policy_of(own, 0.3, 2.0)
    assert steers(NOW) == Step(give_up="no") and steers.throttles and not steers.postcopies
    lives: Policy = policy_of("live", 0.5, 2.0)
    assert lives(NOW) == Step(downtime=0.5)
    assert policy_of("fast", 0.5, 2.0)(NOW) == Step()
    with pytest.raises(SpecInvalid, match=r"policy: there is none called 'life' \(did you mean"):
        policy_of("life", 0.3, 2.0)


def test_what_a_policy_needs_is_known_before() -> None:
    def needs(policy: str | Policy) -> tuple[bool, bool]:
        steers = policy_of(policy, 0.3, 2.0)
        return steers.throttles, steers.postcopies

    assert needs("live") == needs(live()) == (True, False)
    assert needs("fast") == needs(fast(deadline=2)) == (False, False)
    assert needs("postcopy") == needs(postcopy(after=3)) == (False, True)


@pytest.mark.parametrize(("after", "switches"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3])])
def test_postcopy_switches_after_so_many_passes(after: int, switches: list[int]) -> None:
    policy = postcopy(after=after)
    assert [number for number in (1, 2, 3) if policy(at(number=number)).postcopy] == switches


def test_when_to_switch_may_be_told_by_a_function() -> None:
    own = postcopy(lambda now: Step(postcopy=now.seconds > 2))
    assert [own(at(seconds=seconds)).postcopy for seconds in (1.0, 3.0)] == [False, True]


def test_a_number_goes_with_the_policy_that_has_it() -> None:
    assert adjusted("live") == "live"
    quick, later = adjusted("fast", deadline=1), adjusted("postcopy", passes=2)
    assert callable(quick) and quick(at(seconds=1.0)).paused
    assert callable(later) and not later(at(number=2)).postcopy
    with pytest.raises(SpecInvalid) as told:
        adjusted("live", deadline=1, passes=0)
    assert [str(fault) for fault in told.value.faults] == [
        "deadline: the policy 'live' has none (policy=\"fast\" (--policy fast))",
        "passes: the policy 'live' has none (policy=\"postcopy\" (--policy postcopy))",
    ]


@pytest.mark.parametrize("number", [-1, float("nan")])
def test_a_bound_that_cannot_be_waited_for_is_refused(number: float) -> None:
    with pytest.raises(SpecInvalid, match="is 0 or more"):
        fast(deadline=number)
    with pytest.raises(SpecInvalid, match="is 0 or more"):
        live(give_up_after=number)
    with pytest.raises(SpecInvalid, match="is 0 or more"):
        postcopy(after=number)  # type: ignore[arg-type]


TOLD = {
    "status": "active",
    "expected-downtime": 450,
    "cpu-throttle-percentage": 20,
    "ram": {
        "dirty-sync-count": 3,
        "remaining": 8192,
        "total": 1 << 20,
        "transferred": 12345,
        "dirty-pages-rate": 10,
        "page-size": 4096,
        "mbps": 8.0,
    },
}


def test_a_round_is_what_qemu_tells() -> None:
    assert read_round(TOLD, 1.5, 0.3) == Round(
        number=3,
        seconds=1.5,
        remaining=8192,
        total=1 << 20,
        transferred=12345,
        dirty_rate=40960,
        bandwidth=1_000_000,
        downtime=0.3,
        expected_downtime=0.45,
        throttle=20,
    )


def test_a_migration_that_has_not_begun_has_no_round() -> None:
    assert read_round({"status": "setup"}, 0.0, 0.3) is None
    bare = {"ram": {"remaining": 1, "total": 2, "transferred": 1}}
    seen = read_round(bare, 0.0, 0.3)
    assert seen is not None and (seen.number, seen.bandwidth, seen.expected_downtime) == (
        1,
        0,
        None,
    )


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("active", "precopy"),
        ("pre-switchover", "precopy"),
        ("postcopy-active", "postcopy"),
        ("postcopy-paused", "cut"),
        ("postcopy-recover", "cut"),
        ("completed", "precopy"),
    ],
)
def test_a_round_tells_where_the_guest_runs(status: str, phase: str) -> None:
    seen = read_round({**TOLD, "status": status}, 1.0, 0.3)
    assert seen is not None and seen.phase == phase


@pytest.mark.parametrize(
    ("bandwidth", "dirty_rate", "left", "converges"),
    [(0, 0, None, True), (100, 0, 1.0, True), (100, 50, 2.0, True), (100, 100, None, False)],
)
def test_what_is_left_is_told_when_it_converges(
    bandwidth: int, dirty_rate: int, left: float | None, converges: bool
) -> None:
    seen = at(bandwidth=bandwidth, dirty_rate=dirty_rate)
    assert (seen.left, seen.converges) == (left, converges)
