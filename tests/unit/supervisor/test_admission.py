"""Who may start now, and in what words the others are told to wait."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpkit.spec.sizes import GIB, MIB
from qmpkit.supervisor.admission import Admission, Demand, Host, Limits, Pool, Waiting, admit

HUGE = 2 * MIB


def need(gib: float = 1, cpus: int = 1, huge_pages: int = 0) -> Demand:
    return Demand(memory=int(gib * GIB), cpus=cpus, huge_pages=huge_pages)


def host(
    gib: float = 8, free: float | None = None, cpus: int = 8, pages: tuple[int, int] = (0, 0)
) -> Host:
    memory = Pool(int(gib * GIB), int((gib if free is None else free) * GIB))
    huge = {HUGE: Pool(*pages)} if pages[0] else {}
    return Host(memory=memory, cpus=Pool.whole(cpus), huge_pages=huge)


def queue(**demands: Demand) -> list[Waiting]:
    return [Waiting(name, demand) for name, demand in demands.items()]


def test_as_many_as_fit_are_admitted_in_order() -> None:
    admission = admit(host(4), {}, {}, queue(a=need(2), b=need(1), c=need(1), d=need(1)))
    assert admission.now == ("a", "b", "c")
    assert [waiting.name for waiting in admission.queue] == ["d"]
    assert admission.waits == {"d": "1 GiB of memory: 0 MiB are free, a, b and c are starting"}


def test_nothing_to_do() -> None:
    assert admit(host(), {}, {}, []) == Admission((), (), {}, {})


@pytest.mark.parametrize(
    ("there", "running", "starting", "demand", "why"),
    [
        (
            host(8, free=3.25),
            {},
            {"web1": need(2)},
            need(2),
            "2 GiB of memory: 1.2 GiB are free, web1 is starting",
        ),
        (
            host(8, free=8),
            {"a": need(4), "b": need(2.5)},
            {},
            need(2),
            "2 GiB of memory: 1.5 GiB are free, the rest is in use",
        ),
        (
            host(8, free=0.5),
            {},
            {},
            need(1),
            "1 GiB of memory: 512 MiB are free, the rest is in use",
        ),
        (
            host(8, free=1.999),
            {},
            {},
            need(2),
            "2 GiB of memory: 1.9 GiB are free, the rest is in use",
        ),
        (
            host(8, free=2),
            {},
            {},
            need(2.001),
            "2.1 GiB of memory: 2 GiB are free, the rest is in use",
        ),
        (
            host(8, free=-1),
            {},
            {},
            need(2),
            "2 GiB of memory: 0 MiB are free, the rest is in use",
        ),
        (
            host(),
            {"a": need(cpus=3)},
            {"b": need(cpus=4)},
            need(cpus=2),
            "2 CPUs: 1 is free, b is starting",
        ),
        (
            host(pages=(512, 100)),
            {},
            {},
            need(huge_pages=256),
            "256 huge pages of 2MiB: 100 are free, the rest is in use",
        ),
        (
            host(8, free=2),
            {"a": need(cpus=8)},
            {},
            need(4),
            "4 GiB of memory: 2 GiB are free, the rest is in use"
            " and 1 CPU: 0 are free, the rest is in use",
        ),
    ],
)
def test_the_words_of_a_lack(
    there: Host, running: dict[str, Demand], starting: dict[str, Demand], demand: Demand, why: str
) -> None:
    admission = admit(there, running, starting, queue(x=demand))
    assert admission.now == ()
    assert admission.waits == {"x": why}


def test_what_is_starting_has_taken_nothing_yet_and_is_reserved() -> None:
    # 4 GiB free of 8, but 3 of them are for one that is starting.
    assert admit(host(8, free=4), {}, {"s": need(3)}, queue(x=need(1))).now == ("x",)
    assert admit(host(8, free=4), {}, {"s": need(3)}, queue(x=need(1.1))).now == ()


def test_what_was_promised_counts_though_it_is_not_touched() -> None:
    assert admit(host(8, free=7), {"r": need(6)}, {}, queue(x=need(2))).now == ("x",)
    assert admit(host(8, free=7), {"r": need(6)}, {}, queue(x=need(2.1))).now == ()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("a", "its turn: a is starting, at most 1 at the same time"),
        ("ab", "its turn: a and b are starting, at most 2 at the same time"),
        ("abc", "its turn: a, b and c are starting, at most 3 at the same time"),
        ("abcde", "its turn: a, b, c and 2 more are starting, at most 5 at the same time"),
    ],
)
def test_a_bound_on_starts_at_the_same_time(names: str, told: str) -> None:
    starting = {name: need(0.1) for name in names}
    admission = admit(host(), {}, starting, queue(x=need(0.1)), Limits(starts=len(names)))
    assert admission.waits == {"x": told}


def test_what_can_never_fit_is_told_at_once_and_leaves_the_queue() -> None:
    big = queue(a=need(9), b=need(1, cpus=9), c=need(1, huge_pages=1), d=need(1))
    full = {"r": need(8, cpus=8)}
    admission = admit(host(8), full, {}, big)
    assert admission.never == {
        "a": "9 GiB of memory: this host has 8 GiB for machines",
        "b": "9 CPUs: this host has 8 for machines",
        "c": "1 huge page of 2MiB: this host has 0 for machines",
    }
    assert list(admission.waits) == ["d"]
    assert [waiting.name for waiting in admission.queue] == ["d"]


def test_a_big_machine_is_overtaken_only_so_often() -> None:
    limits = Limits(starts=99, overtakes=2)
    waiting = queue(big=need(6), s1=need(1), s2=need(1), s3=need(1))
    admission = admit(host(8), {"r": need(3)}, {}, waiting, limits)
    assert admission.now == ("s1", "s2")
    assert admission.queue[0] == Waiting("big", need(6), overtaken=2)
    assert admission.waits["s3"] == (
        "its turn: big is next, waits for 6 GiB of memory: 3 GiB are free, s1 and s2 are starting,"
        " and 2 that came later have started before it"
    )
    # From now on nobody passes, whatever room there is, until it has started.
    running = {"r": need(3), "s1": need(1)}
    later = admit(host(8), running, {}, admission.queue, limits)
    assert later.now == ()
    assert admit(host(8), {"s1": need(1)}, {}, later.queue, limits).now == ("big", "s3")


def test_without_overtaking_the_order_is_strict() -> None:
    waiting = queue(big=need(6), small=need(1))
    assert admit(host(8), {"r": need(3)}, {}, waiting, Limits(overtakes=0)).now == ()


demands = st.builds(
    need, st.floats(0.1, 8), cpus=st.integers(1, 8), huge_pages=st.sampled_from([0, 0, 1, 8])
)
farms = st.lists(demands, max_size=12).map(
    lambda ds: [Waiting(f"vm{n}", d) for n, d in enumerate(ds)]
)


@settings(deadline=None)
@given(farms, st.integers(1, 4), st.integers(0, 3))
def test_everyone_gets_in_when_machines_end_and_nothing_is_overcommitted(
    waiting: list[Waiting], starts: int, overtakes: int
) -> None:
    limits, there = Limits(starts=starts, overtakes=overtakes), host(8, pages=(8, 8))
    left, running = tuple(waiting), dict[str, Demand]()
    known = {w.name: w.demand for w in waiting}
    passed = dict.fromkeys(known, 0)
    while left:
        admission = admit(there, running, {}, left, limits)
        assert not admission.never
        assert set(admission.waits) == {w.name for w in admission.queue}
        assert len(admission.now) <= starts
        for w in admission.queue:
            behind = [n for n in admission.now if list(known).index(n) > list(known).index(w.name)]
            passed[w.name] += len(behind)
            assert passed[w.name] == w.overtaken <= overtakes
        running |= {name: known[name] for name in admission.now}
        assert sum(d.memory for d in running.values()) <= there.memory.total
        assert sum(d.cpus for d in running.values()) <= there.cpus.total
        assert sum(d.huge_pages for d in running.values()) <= 8
        assert running  # else they would wait for ever
        left = admission.queue
        running.pop(next(iter(running)))


@settings(deadline=None)
@given(farms)
def test_a_queue_is_gone_through_the_same_way_in_one_step_or_in_many(
    waiting: list[Waiting],
) -> None:
    """Admitting one at a time, each of them starting, comes to the same set."""
    there, many = host(8, pages=(8, 8)), Limits(starts=99, overtakes=99)
    at_once = admit(there, {}, {}, waiting, many).now
    starting: dict[str, Demand] = {}
    left = tuple(waiting)
    while (
        now := admit(there, {}, starting, left, attrs.evolve(many, starts=1 + len(starting)))
    ).now:
        starting[now.now[0]] = next(w.demand for w in left if w.name == now.now[0])
        left = now.queue
    assert tuple(starting) == at_once
