"""The order in which machines start: each after what it is `after` and what it `requires`."""

from __future__ import annotations

import graphlib
import heapq
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["circles", "start_order"]


def circles(before: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, ...]]:
    """Machines that wait for one another, each circle from its first and back to it.

    Of circles that lead into one another only one is told: the others may go with it.
    """
    left = _inner(before)
    place = {name: number for number, name in enumerate(before)}
    while found := _circle(left):
        at = found.index(min(found, key=place.__getitem__))
        yield (*found[at:], *found[:at], found[at])
        tangled = _reached(found[0], left) & _reached(found[0], _reversed(left))
        left = _inner({name: left[name] for name in left if name not in tangled})


def _circle(before: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Each waits for the next, and the last for the first; empty when none do."""
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        # graphlib tells it from the one that is waited for, and the first twice.
        return tuple(reversed(error.args[1][1:]))
    return ()


def _inner(before: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Without the values that are no keys."""
    return {name: [other for other in others if other in before] for name, others in before.items()}


def _reversed(before: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    after: dict[str, list[str]] = {name: [] for name in before}
    for name, others in before.items():
        for other in others:
            after[other].append(name)
    return after


def _reached(start: str, edges: Mapping[str, Iterable[str]]) -> set[str]:
    reached, todo = {start}, [start]
    while todo:
        new = set(edges[todo.pop()]) - reached
        reached |= new
        todo += new
    return reached


def start_order(before: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """The keys of *before* so that each comes after its values, otherwise as they stand.

    Values that are no keys are left out.  There must be no circle.
    """
    place = {name: number for number, name in enumerate(before)}
    sorter = graphlib.TopologicalSorter(_inner(before))
    sorter.prepare()
    names = list(before)
    ready: list[int] = []
    order: list[str] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heapq.heappush(ready, place[name])
        name = names[heapq.heappop(ready)]
        order.append(name)
        sorter.done(name)
    return tuple(order)
