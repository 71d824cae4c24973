"""What a series of results comes to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpkit.spec.health import Health
from qmpkit.supervisor.health import (
    Healthy,
    Result,
    Starting,
    Unhealthy,
    Verdict,
    Vitals,
    judge,
)

AGENT = Health(checks="agent", start_period=60, retries=3, interval=10, start_interval=1)


def series(text: str, step: float = 10, first: float = 10, check: str = "agent") -> list[Result]:
    """ "+-" as results every so often: passed, failed."""
    return [
        Result(check, first + number * step, sign == "+", "" if sign == "+" else "no answer")
        for number, sign in enumerate(text)
    ]


NOT_YET = Starting("agent: not yet, no answer")


@pytest.mark.parametrize(
    ("signs", "verdict"),
    [
        ("", Starting("agent: not made yet")),
        ("-----", NOT_YET),  # 10 to 50: within the start period
        ("-----+", Healthy()),
        ("-----+--", Healthy()),
        ("-----+---", Unhealthy("agent: no answer, 3 times in a row")),
        ("+--", Healthy()),
        ("+---", Unhealthy("agent: no answer, 3 times in a row")),  # 20 to 40, but it had passed
        ("+--+--+", Healthy()),
        ("+----+", Healthy()),
        ("-------", NOT_YET),  # 60 and 70 count
        ("--------", Unhealthy("agent: no answer, 3 times in a row")),
        ("---------", Unhealthy("agent: no answer, 4 times in a row")),
    ],
)
def test_one_check(signs: str, verdict: Verdict) -> None:
    assert judge(AGENT, 0, series(signs)) == verdict


def test_once_is_enough_when_it_is_said_to_be() -> None:
    health = Health(checks="agent", start_period=0, retries=1)
    assert judge(health, 0, series("-")) == Unhealthy("agent: no answer, once")


def test_the_start_period_counts_from_the_start() -> None:
    assert judge(AGENT, 1000, series("------", first=1010)) == NOT_YET
    assert judge(AGENT, 1000, series("--------", first=1010)) != NOT_YET


def test_all_checks_have_to_pass() -> None:
    health = Health(checks=["agent", "tcp:22"], start_period=0, retries=1)
    passed, failed = series("+"), series("-", check="tcp:22")
    assert judge(health, 0, passed) == Starting("tcp:22: not made yet")
    assert judge(health, 0, passed + failed) == Unhealthy("tcp:22: no answer, once")
    assert judge(health, 0, passed + series("+", check="tcp:22")) == Healthy()
    both = judge(health, 0, series("-") + failed)
    assert both == Unhealthy("agent: no answer, once and tcp:22: no answer, once")


def test_a_failure_without_words_still_has_some() -> None:
    health = Health(checks="agent", start_period=0, retries=1)
    assert judge(health, 0, [Result("agent", 1, False)]) == Unhealthy("agent: it failed, once")


def test_results_that_come_late_or_of_no_check_are_void() -> None:
    old = [Result("agent", 20, True), Result("agent", 19, False), Result("gone", 21, False)]
    vitals = Vitals(AGENT, 10)
    for result in old:
        vitals = vitals.told(result)
    assert vitals == Vitals(AGENT, 10).told(old[0])
    assert Vitals(AGENT, 30).told(old[0]) == Vitals(AGENT, 30)  # of the incarnation before


def test_checks_are_made_often_until_they_have_passed() -> None:
    vitals = Vitals(AGENT, 5)
    assert vitals.due() == {"agent": 5}
    vitals = vitals.told(Result("agent", 6, False))
    assert vitals.due() == {"agent": 7}
    vitals = vitals.told(Result("agent", 7, True))
    assert vitals.due() == {"agent": 17}
    assert vitals.told(Result("agent", 17, False)).due() == {"agent": 27}


@settings(deadline=None)
@given(st.text("+-", max_size=30), st.integers(1, 5), st.floats(0, 100))
def test_the_verdict_is_that_of_the_definition(signs: str, retries: int, grace: float) -> None:
    health = Health(checks="agent", retries=retries, start_period=grace)
    results = series(signs)
    tail = len(signs) - len(signs.rstrip("-"))
    counted = [r for r in results[len(results) - tail :] if "+" in signs or r.time >= grace]
    verdict = judge(health, 0, results)
    if len(counted) >= retries:
        assert isinstance(verdict, Unhealthy)
    else:
        assert isinstance(verdict, Healthy if "+" in signs else Starting)
