"""Who starts after whom, and who cannot start."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpkit.supervisor.order import (
    Needs,
    Seen,
    Standing,
    Stops,
    in_circles,
    ready_to_start,
    ready_to_stop,
    start_order,
    stop_order,
)

S = Standing
WEB = {
    "web": Needs(requires=("app",), after=("log",)),
    "app": Needs(requires=("db",)),
    "db": Needs(),
    "log": Needs(),
}


def seen(**standings: Standing | Seen) -> dict[str, Seen]:
    return {n: s if isinstance(s, Seen) else Seen(s) for n, s in standings.items()}


def test_all_needs_come_first_and_otherwise_the_files_order_stands() -> None:
    assert start_order(WEB) == ("db", "app", "log", "web")
    assert stop_order(WEB) == ("web", "log", "app", "db")
    assert start_order({name: Needs() for name in "cab"}) == ("c", "a", "b")


@pytest.mark.parametrize(
    ("key", "standing", "outcome"),
    [
        ("after", S.WANTED, "waits"),
        ("after", S.STARTING, "waits"),
        ("after", S.UP, "now"),
        ("after", S.STOPPING, "now"),
        ("after", S.DOWN, "now"),
        ("after", S.FAILED, "now"),
        ("requires", S.WANTED, "waits"),
        ("requires", S.STARTING, "waits"),
        ("requires", S.UP, "now"),
        ("requires", S.STOPPING, "waits"),
        ("requires", S.DOWN, "blocked"),
        ("requires", S.FAILED, "blocked"),
    ],
)
def test_each_standing_of_the_other(key: str, standing: Standing, outcome: str) -> None:
    machines = {"web": Needs(**{key: ("db",)}), "db": Needs()}
    states = {"web": Seen(S.WANTED), "db": Seen(standing, "because")}
    ready = ready_to_start(start_order(machines), machines, states)
    assert ("web" in ready.now) == (outcome == "now")
    for name, reasons in (("waits", ready.waits), ("blocked", ready.blocked)):
        assert ("web" in reasons) == (outcome == name)
        assert all("db" in why and "because" in why for why in reasons.values())


def test_what_is_not_wanted_is_not_started() -> None:
    machines = {"web": Needs()}
    for standing in set(S) - {S.WANTED}:
        ready = ready_to_start(["web"], machines, seen(web=standing))
        assert (ready.now, ready.waits, ready.blocked) == ((), {}, {})


def test_a_failure_blocks_all_that_require_it_and_frees_all_that_only_come_after() -> None:
    machines = {**WEB, "other": Needs(after=("web",))}
    failed = Seen(S.FAILED, "no such disk")
    states = seen(web=S.WANTED, app=S.WANTED, db=failed, log=S.UP, other=S.WANTED)
    ready = ready_to_start(start_order(machines), machines, states)
    assert ready.now == ("other",)
    assert ready.blocked == {
        "app": "it requires db, which has failed: no such disk",
        "web": "it requires app, which cannot start without db, which has failed: no such disk",
    }


def test_everything_that_is_waited_for_is_named() -> None:
    states = seen(web=S.WANTED, app=S.STARTING, db=S.UP, log=Seen(S.STARTING, "not healthy yet"))
    ready = ready_to_start(start_order(WEB), WEB, states)
    assert ready.waits == {
        "web": "app, which is not up yet and log, which is not up yet: not healthy yet"
    }


def test_stops_go_backwards_and_only_wait_for_those_that_stop_too() -> None:
    stops = ready_to_stop(WEB, stop_order(WEB))
    assert stops.now == ("web",)
    assert stops.waits == {name: f"{by} to stop first" for name, by in STOPS_FIRST.items()}
    assert ready_to_stop(WEB, ["db"]).now == ("db",)
    assert ready_to_stop(WEB, ["app", "log", "db"]).now == ("app", "log")
    assert ready_to_stop(WEB, []) == Stops((), {})


def test_a_circle_is_told_and_stopped_at_once() -> None:
    machines = {
        "a": Needs(after=("b",)),
        "b": Needs(requires=("a", "db")),
        "c": Needs(after=("a",)),
        "db": Needs(),
    }
    why = "none of them could start first: a → b → a"
    assert in_circles(machines) == {"a": why, "b": why}
    assert ready_to_stop(machines, machines).now == ("c",)
    assert ready_to_stop(machines, ["a", "b", "db"]).now == ("a", "b", "db")


STOPS_FIRST = {"app": "web", "log": "web", "db": "app"}


@st.composite
def farms(draw: st.DrawFn) -> dict[str, Needs]:
    """Without circles: each needs only some of those drawn before it."""
    farm: dict[str, Needs] = {}
    for name in draw(st.permutations("abcdefg")):
        some = st.lists(st.sampled_from([*farm]), max_size=2) if farm else st.just([])
        farm[name] = Needs(after=tuple(draw(some)), requires=tuple(draw(some)))
    return dict(sorted(farm.items()))


@settings(deadline=None)
@given(farms(), st.data())
def test_a_farm_comes_up_and_goes_down_in_order(
    machines: dict[str, Needs], data: st.DataObject
) -> None:
    order = start_order(machines)
    states = {name: Seen(S.WANTED) for name in machines}
    while now := ready_to_start(order, machines, states).now:
        name = data.draw(st.sampled_from(now))
        assert all(states[other].standing is S.UP for other in machines[name].all)
        states[name] = Seen(S.UP)
    assert all(state.standing is S.UP for state in states.values())
    left = list(stop_order(machines))
    while now := ready_to_stop(machines, left).now:
        name = data.draw(st.sampled_from(now))
        assert not any(name in machines[other].all for other in left)
        left.remove(name)
    assert not left
