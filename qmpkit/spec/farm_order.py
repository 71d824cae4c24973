"""The order in which machines start: each after what it is `after` and what it `requires`."""

from __future__ import annotations

import graphlib
import heapq
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["circle", "start_order"]


def circle(before: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Machines that wait for one another, the first again at the end; empty when none do."""
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return tuple(reversed(found))  # graphlib tells it from the one that is waited for
    return ()


def start_order(before: Mapping[str, Iterable[str]]) -> Sequence[str]:
    """The keys of *before* so that each comes after its values, otherwise as they stand.

    Values that are no keys are left out.
    """
    place = {name: number for number, name in enumerate(before)}
    sorter = graphlib.TopologicalSorter(
        {name: [other for other in others if other in place] for name, others in before.items()}
    )
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
    return order
