"""Which machines may start or stop now, by `after` and `requires`, and what the others wait for.

Pure.  `after` only orders, as systemd's After= does: once the other has come up, failed or
turned out not to be wanted, the way is free.  `requires` orders too, as depends_on of
docker compose does, and blocks: what it names has to be up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

import attrs

from qmpkit.spec import farm_order

__all__ = [
    "Needs",
    "Ready",
    "Seen",
    "Standing",
    "Stops",
    "in_circles",
    "ready_to_start",
    "ready_to_stop",
    "start_order",
    "stop_order",
]


@attrs.frozen(kw_only=True)
class Needs:
    """The names of the machines that one comes after, and of those it cannot do without."""

    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Both, each name once."""
        return tuple(dict.fromkeys((*self.requires, *self.after)))


class Standing(Enum):
    """How a machine stands to those that come after it."""

    WANTED = "wanted"  # to be started, not begun
    STARTING = "starting"  # or waiting for a restart, not healthy yet, silent, stuck
    UP = "up"
    STOPPING = "stopping"
    DOWN = "down"  # not wanted, and not there
    FAILED = "failed"  # wanted, and will not come up by itself


@attrs.frozen
class Seen:
    """A machine's standing, and why: `why` ends up in the reasons of those that wait for it."""

    standing: Standing
    why: str = ""

    def __str__(self) -> str:
        return f"{_WORDS[self.standing]}{f': {self.why}' if self.why else ''}"


_WORDS = {
    Standing.WANTED: "has not started yet",
    Standing.STARTING: "is not up yet",
    Standing.UP: "is up",
    Standing.STOPPING: "is stopping",
    Standing.DOWN: "is stopped",
    Standing.FAILED: "has failed",
}


@attrs.frozen
class Ready:
    """`now` may start; `waits` and `blocked` tell, of the other wanted ones, for what.

    A wait ends by itself, a block does not: something has to be done about its cause.
    """

    now: tuple[str, ...]
    waits: Mapping[str, str]
    blocked: Mapping[str, str]


@attrs.frozen
class Stops:
    """`now` may stop; `waits` tells of the others that are to stop for what."""

    now: tuple[str, ...]
    waits: Mapping[str, str]


def in_circles(machines: Mapping[str, Needs]) -> dict[str, str]:
    """Machines that wait for one another, and why none can start; `start_order` has no place
    for them.  There may be more when these need nothing any more.
    """
    needs = {name: needs.all for name, needs in machines.items()}
    return {
        name: f"none of them could start first: {' → '.join(circle)}"
        for circle in farm_order.circles(needs)
        for name in circle
    }


def start_order(machines: Mapping[str, Needs]) -> tuple[str, ...]:
    """Every machine after all it needs, otherwise as they were given.

    There must be no circle (`in_circles`).
    """
    return farm_order.start_order({name: needs.all for name, needs in machines.items()})


def stop_order(machines: Mapping[str, Needs]) -> tuple[str, ...]:
    """The reverse of `start_order`."""
    return start_order(machines)[::-1]


def ready_to_start(
    order: Sequence[str], machines: Mapping[str, Needs], seen: Mapping[str, Seen]
) -> Ready:
    """Who of the wanted ones may start now; *order* is the `start_order` of *machines*."""
    now: list[str] = []
    waits: dict[str, str] = {}
    blocked: dict[str, str] = {}
    roots: dict[str, str] = {}
    for name in order:
        if seen[name].standing is not Standing.WANTED:
            continue
        if lack := _lack(machines[name], seen, roots):
            other, roots[name] = lack
            blocked[name] = _block(other, roots[name], seen[other])
        elif why := _wait(machines[name], seen, blocked):
            waits[name] = why
        else:
            now.append(name)
    return Ready(tuple(now), waits, blocked)


def _lack(
    needs: Needs, seen: Mapping[str, Seen], roots: Mapping[str, str]
) -> tuple[str, str] | None:
    """Which requirement cannot be met, and the machine at the root of it, with its state."""
    for other in needs.requires:
        if other in roots:
            return other, roots[other]
        if seen[other].standing in (Standing.DOWN, Standing.FAILED):
            return other, f"{other}, which {seen[other]}"
    return None


def _block(other: str, root: str, seen: Seen) -> str:
    # Only the ends of a long chain: the names between them help nobody.
    if seen.standing is Standing.WANTED:
        return f"it requires {other}, which cannot start without {root}"
    return f"it requires {root}"


def _wait(needs: Needs, seen: Mapping[str, Seen], blocked: Mapping[str, str]) -> str:
    reasons = [
        f"{other}, which {seen[other]}"
        for other in needs.all
        if _holds(other, needs, seen, blocked)
    ]
    return " and ".join(reasons)


def _holds(other: str, needs: Needs, seen: Mapping[str, Seen], blocked: Mapping[str, str]) -> bool:
    standing = seen[other].standing
    if other in needs.requires:
        return standing is not Standing.UP
    # A blocked one will not come up, and to come after it is no reason to stay down with it.
    return standing in (Standing.WANTED, Standing.STARTING) and other not in blocked


def ready_to_stop(machines: Mapping[str, Needs], stops: Iterable[str]) -> Stops:
    """Who of *stops* may be stopped now: nobody that stops too and came after it is there.

    *stops* are those that are to stop and are still there, whether or not they were told.
    """
    leaving = tuple(stops)
    later: dict[str, list[str]] = {}
    for other in leaving:
        for name in machines[other].all:
            later.setdefault(name, []).append(other)
    waits = {
        name: f"{' and '.join(later[name])} to stop first" for name in leaving if name in later
    }
    if len(waits) == len(leaving):  # in a circle, where somebody has to be the first
        return Stops(leaving, {})
    return Stops(tuple(name for name in leaving if name not in waits), waits)
