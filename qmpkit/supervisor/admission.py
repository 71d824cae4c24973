"""Which of the waiting machines may start now, and what each of the others waits for.

Pure.  A machine is admitted when the host has room for all of it: what running machines
were promised counts whether or not they have touched it, and what the host reports as free
is reduced by all that those still starting have yet to take.  The queue is in order of
arrival.  A small machine may overtake a big one that does not fit, but only `overtakes`
times; then the big one's turn comes first, also when that leaves room idle, because a stream
of small ones would else keep it out for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from qmpkit.spec.sizes import GIB, MIB, format_size

__all__ = ["Admission", "Demand", "Host", "Limits", "Pool", "TURN", "Waiting", "admit"]

TURN = "its turn"
"""How the reason begins of those that wait for other machines and for no resource."""

_NAMES_TOLD = 3


@attrs.frozen(kw_only=True, cache_hash=True)
class Demand:
    """What a machine takes of the host.

    `memory`: bytes of ordinary memory, QEMU's own share included; `huge_pages`: pages of
    `page_size` bytes, for a guest whose memory is in those; `cpus`: its processors.
    """

    memory: int
    cpus: int = 1
    huge_pages: int = 0
    page_size: int = 2 * MIB


@attrs.frozen
class Pool:
    """One resource of the host: `total` for machines, and `free` as the host tells it now."""

    total: int
    free: int

    @classmethod
    def whole(cls, total: int) -> Pool:
        """Of which only the promises say what is taken (processors)."""
        return cls(total, total)


@attrs.frozen(kw_only=True)
class Host:
    """What the host has for machines.

    `memory` in bytes, less what is kept for the host itself; `cpus`: as many as guests may
    have together, which may be more than there are; `huge_pages`: pages, by their bytes.
    """

    memory: Pool
    cpus: Pool
    huge_pages: Mapping[int, Pool] = attrs.field(factory=dict)


@attrs.frozen
class Waiting:
    """A machine in the queue; `overtaken`: how many that came later were admitted before it."""

    name: str
    demand: Demand
    overtaken: int = 0


@attrs.frozen(kw_only=True)
class Limits:
    """`starts`: machines that start at the same time; `overtakes`: see the module."""

    starts: int = 4
    overtakes: int = 8


@attrs.frozen
class Admission:
    """`now` may start; `queue` is what is left, with the reason of each in `waits`.

    `never`: those that are too big for this host even when it is empty, with the reason;
    they are not in the queue any more.
    """

    now: tuple[str, ...]
    queue: tuple[Waiting, ...]
    waits: Mapping[str, str]
    never: Mapping[str, str]


@attrs.frozen
class _Kind:
    """A resource: "memory", "cpus", or the bytes of a huge page."""

    which: str | int

    def words(self, amount: int, *, up: bool) -> str:
        """An amount for people; *up*: which way it is rounded, so that a lack is seen."""
        match self.which:
            case "memory":
                return f"{_round(amount, up=up)} of memory"
            case "cpus":
                return f"{amount} CPU{'' if amount == 1 else 's'}"
            case size:
                pages = "page" if amount == 1 else "pages"
                return f"{amount} huge {pages} of {format_size(int(size))}"

    def bare(self, amount: int) -> str:
        """An amount without its kind."""
        return _round(amount, up=False) if self.which == "memory" else str(amount)

    def free(self, amount: int) -> str:
        """ "1.2 GiB are free"."""
        be = "is" if amount == 1 and self.which != "memory" else "are"
        return f"{self.bare(amount)} {be} free"


_Amounts = Mapping[_Kind, int]
_MEMORY, _CPUS = _Kind("memory"), _Kind("cpus")


def admit(
    host: Host,
    running: Mapping[str, Demand],
    starting: Mapping[str, Demand],
    queue: Sequence[Waiting],
    limits: Limits = Limits(),
) -> Admission:
    """Go through the *queue* once, in order.

    *running* are all that are up, paused ones too, *starting* those that were admitted and
    are not up yet.  The names of all three differ.
    """
    totals = {kind: pool.total for kind, pool in _pools(host).items()}
    # A queue is asked about as a whole, and often: most demands in it are the same.
    whys = {demand: _too_big(demand, totals) for demand in {w.demand for w in queue}}
    never = {w.name: why for w in queue if (why := whys[w.demand])} if any(whys.values()) else {}
    room = _Room.of(host, running, starting, limits)
    left: list[Waiting] = []
    waits: dict[str, str] = {}
    first: Waiting | None = None
    fitting = [w for w in queue if w.name not in never] if never else queue
    for number, waiting in enumerate(fitting):
        if room.full:  # so it is for all that come now
            left += fitting[number:]
            waits |= dict.fromkeys((w.name for w in fitting[number:]), room.full)
            break
        if why := room.refusal(waiting, first):
            left.append(waiting)
            waits[waiting.name] = why
        else:
            room = room.less(waiting)
            left = [attrs.evolve(w, overtaken=w.overtaken + 1) for w in left]
        first = first or next((w for w in left if w.overtaken >= limits.overtakes), None)
    return Admission(room.admitted, tuple(left), waits, never)


def _too_big(demand: Demand, totals: _Amounts) -> str:
    """Why it can never fit; empty when it can."""
    lacks = []
    for kind, amount in _amounts(demand).items():
        if amount > (there := totals.get(kind, 0)):
            has = f"this host has {kind.bare(there)} for machines"
            lacks.append(f"{kind.words(amount, up=True)}: {has}")
    return " and ".join(lacks)


@attrs.frozen
class _Room:
    """What is left while the queue is gone through."""

    free: _Amounts
    starting: tuple[str, ...]  # those that were, then those just admitted
    admitted: tuple[str, ...]
    limits: Limits
    full: str = attrs.field(init=False)  # why no more may start at the same time, if so

    @full.default
    def _why_full(self) -> str:
        if len(self.starting) < self.limits.starts:
            return ""
        most = f"at most {self.limits.starts} at the same time"
        return f"{TURN}: {_are(self.starting, 'starting')}, {most}"

    @classmethod
    def of(
        cls,
        host: Host,
        running: Mapping[str, Demand],
        starting: Mapping[str, Demand],
        limits: Limits,
    ) -> _Room:
        promised = _sum([*running.values(), *starting.values()])
        coming = _sum(starting.values())
        free = {
            kind: min(pool.total - promised.get(kind, 0), pool.free - coming.get(kind, 0))
            for kind, pool in _pools(host).items()
        }
        return cls(free, tuple(starting), (), limits)

    def less(self, waiting: Waiting) -> _Room:
        """After a machine was admitted."""
        taken = _amounts(waiting.demand)
        free = {kind: amount - taken.get(kind, 0) for kind, amount in self.free.items()}
        return _Room(
            free,
            (*self.starting, waiting.name),
            (*self.admitted, waiting.name),
            self.limits,
        )

    def refusal(self, waiting: Waiting, first: Waiting | None) -> str:
        """Why it may not start now, behind *first* if there is one; empty when it may."""
        if first is not None:
            times = f"{first.overtaken} that came later have started before it"
            return f"{TURN}: {first.name} is next, waits for {self._lack(first)}, and {times}"
        return self._lack(waiting)

    def _lack(self, waiting: Waiting) -> str:
        return " and ".join(self._lacks(_amounts(waiting.demand)))

    def _lacks(self, wanted: _Amounts) -> Iterator[str]:
        rest = _are(self.starting, "starting") or "the rest is in use"
        for kind, amount in wanted.items():
            free = max(self.free.get(kind, 0), 0)
            if amount > free:
                yield f"{kind.words(amount, up=True)}: {kind.free(free)}, {rest}"


def _pools(host: Host) -> dict[_Kind, Pool]:
    huge = {_Kind(size): pool for size, pool in host.huge_pages.items()}
    return {_MEMORY: host.memory, _CPUS: host.cpus, **huge}


def _amounts(demand: Demand) -> dict[_Kind, int]:
    huge = {_Kind(demand.page_size): demand.huge_pages} if demand.huge_pages else {}
    return {_MEMORY: demand.memory, _CPUS: demand.cpus, **huge}


def _sum(demands: Iterable[Demand]) -> dict[_Kind, int]:
    total: dict[_Kind, int] = {}
    for demand, times in Counter(demands).items():
        for kind, amount in _amounts(demand).items():
            total[kind] = total.get(kind, 0) + amount * times
    return total


def _are(names: Sequence[str], what: str) -> str:
    """ "web1 is starting", "web1, web2, web3 and 4 more are starting", or nothing for nobody."""
    if len(names) <= 1:
        return f"{names[0]} is {what}" if names else ""
    told, more = names[:_NAMES_TOLD], len(names) - _NAMES_TOLD
    listed = f"{', '.join(told)} and {more} more" if more > 0 else _listed(told)
    return f"{listed} are {what}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _round(size: int, *, up: bool) -> str:
    """ "1.2 GiB": what is needed is rounded up and what is there down, else a lack may vanish."""
    unit, called = (GIB, "GiB") if size >= GIB else (MIB, "MiB")
    tenths = -(-size * 10 // unit) if up else size * 10 // unit
    return f"{tenths / 10:g} {called}"
