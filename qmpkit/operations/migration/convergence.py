"""What to do when a guest changes its memory faster than it can be sent.  Pure.

A policy looks at where the migration is and says how it is to be from now on; it is asked
when the migration begins, after each pass over the memory (of passes shorter than 5 ms after
every other one) and twice a second, and may be a function of the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.suggest import suggestion

__all__ = ["Copying", "Phase", "Policy", "Round", "Steering", "Step", "adjusted"]
__all__ += ["copying_round", "fast", "is_switched", "live", "policy_of", "postcopy", "read_round"]

Phase = Literal["precopy", "postcopy", "cut"]


@attrs.frozen
class Copying:
    """How far a disk that goes along is: `done` of `total` bytes, which may grow meanwhile."""

    disk: str
    done: int
    total: int


@attrs.frozen(kw_only=True)
class Round:
    """How far a migration is (`query-migrate`).

    `number`: passes over the guest's memory that have begun, from 1; 0 while disks that go
    along are copied, before: then `remaining`, `total` and `transferred` are theirs together,
    and `disks` tells of each.  `seconds` since the
    migration began.  `remaining`, `total`: bytes of memory left in this pass, and in all;
    `transferred`: bytes sent.  `dirty_rate`: bytes that the guest changed each second of the
    pass before; `bandwidth`: bytes sent each second; both 0 before they are known.
    `downtime`: the limit in force, in seconds; `expected_downtime`: what QEMU expects,
    None before it does.  `throttle`: percent of its CPU time that is taken from the guest.
    `phase`: "precopy", while the guest runs here; "postcopy", when it runs at the destination
    and its memory follows; "cut", when the connection is lost meanwhile, and being made anew.
    """

    number: int
    seconds: float
    remaining: int
    total: int
    transferred: int
    dirty_rate: int = 0
    bandwidth: int = 0
    downtime: float = 0.3
    expected_downtime: float | None = None
    throttle: int = 0
    phase: Phase = "precopy"
    disks: tuple[Copying, ...] = ()

    @property
    def left(self) -> float | None:
        """Seconds until it is done; None when nobody knows, or when it does not converge."""
        gain = self.bandwidth - self.dirty_rate
        return self.remaining / gain if gain > 0 else None

    @property
    def converges(self) -> bool:
        """Whether it sends faster than the guest writes, as far as that is known."""
        return not self.dirty_rate or self.bandwidth > self.dirty_rate


@attrs.frozen(kw_only=True)
class Step:
    """How a migration is to be from now on; without anything it goes on as it is.

    `downtime`: seconds that the guest may stand still at the end.  `paused`: the guest stands
    still from now on, so that it is over soon.  `postcopy`: the guest runs at the destination
    from now on, and its memory follows; for a policy that is given to `postcopy`.
    `give_up`: why the machine stays where it is.
    """

    downtime: float | None = None
    paused: bool = False
    postcopy: bool = False
    give_up: str = ""


Policy = Callable[[Round], Step]
"""Must not block; it is called from trio's loop."""


@attrs.frozen
class Steering:
    """A policy, and what is to be prepared for it before the migration begins.

    `throttles`: the guest may be slowed down until it converges; `postcopies`: it may say
    `Step(postcopy=True)`.
    """

    decide: Policy
    throttles: bool = True
    postcopies: bool = False

    def __call__(self, now: Round) -> Step:
        return self.decide(now)


_EVERY = 2  # passes before the downtime is doubled
_MOST_DOUBLED = 32  # beyond what any downtime can be


def live(
    *, downtime: float = 0.3, max_downtime: float = 2.0, give_up_after: float = float("inf")
) -> Policy:
    """Let the guest run, ever slower, and stand still at the end ever longer, up to a bound.

    Seconds that it may stand still: *downtime* first, at last *max_downtime*.  Needs the
    capability auto-converge.  *give_up_after* so many seconds it stays.
    """
    _check("give_up_after", give_up_after)

    def policy(now: Round) -> Step:
        if now.seconds > give_up_after:
            return Step(give_up=f"it has not converged in {give_up_after:g} s")
        doubled = min((now.number - 1) // _EVERY, _MOST_DOUBLED)
        return Step(downtime=min(downtime * 2**doubled, max_downtime))

    return Steering(policy)


def fast(*, deadline: float = 5.0) -> Policy:
    """Have the guest stand still when it has not moved within *deadline* seconds."""
    _check("deadline", deadline)

    def policy(now: Round) -> Step:
        return Step(paused=now.seconds >= deadline)

    return Steering(policy, throttles=False)


def postcopy(policy: Policy | None = None, /, *, after: int = 1) -> Policy:
    """Have the guest run at the destination *after* so many passes, and its memory follow.

    So it moves however fast it writes.  With a *policy* of your own that one says when, by
    `Step(postcopy=True)`.  From then on the guest needs both QEMUs and the connection until
    all is there: see `VM.migrate`.  SpecInvalid for what is no number of passes.
    """
    _check("after", after)

    def switch(now: Round) -> Step:
        return Step(postcopy=now.number > after)

    return Steering(policy or switch, throttles=False, postcopies=True)


def copying_round(disks: tuple[Copying, ...], seconds: float, downtime: float) -> Round:
    """Where a migration is that has not begun with the memory yet."""
    done, total = sum(it.done for it in disks), sum(it.total for it in disks)
    return Round(
        number=0,
        seconds=seconds,
        remaining=max(total - done, 0),
        total=total,
        transferred=done,
        downtime=downtime,
        disks=disks,
    )


def _check(name: str, value: float) -> None:
    if not value >= 0:
        raise SpecInvalid([Fault(name, f"is 0 or more, not {value!r}")], "the policy")


_NAMES = ("live", "fast", "postcopy")


def policy_of(policy: str | Policy, downtime: float, max_downtime: float) -> Steering:
    """The policy of that name; SpecInvalid when there is none."""
    match policy:
        case "live":
            policy = live(downtime=downtime, max_downtime=max_downtime)
        case "fast":
            policy = fast()
        case "postcopy":
            policy = postcopy()
        case str():
            names = ", ".join(map(repr, _NAMES))
            hint = suggestion(policy, _NAMES) or f"one of {names}, or a function"
            raise SpecInvalid([Fault("policy", f"there is none called {policy!r}", hint)])
    return policy if isinstance(policy, Steering) else Steering(policy)


def adjusted(
    name: str, *, deadline: float | None = None, passes: int | None = None
) -> str | Policy:
    """The policy of a name with numbers of its own; SpecInvalid for those it does not have."""
    given = {"deadline": (deadline, "fast"), "passes": (passes, "postcopy")}
    faults = [
        Fault(number, f"the policy {name!r} has none", f'policy="{whose}" (--policy {whose})')
        for number, (value, whose) in given.items()
        if value is not None and name != whose
    ]
    if faults:
        raise SpecInvalid(faults, "the policy")
    if deadline is not None:
        return fast(deadline=deadline)
    return name if passes is None else postcopy(after=passes)


def read_round(told: Mapping[str, Any], seconds: float, downtime: float) -> Round | None:
    """Where a migration is, by the reply to `query-migrate`; None before it has begun to send."""
    ram = told.get("ram")
    if ram is None:
        return None
    expected = told.get("expected-downtime")
    return Round(
        number=max(ram.get("dirty-sync-count", 1), 1),
        seconds=seconds,
        remaining=ram["remaining"],
        total=ram["total"],
        transferred=ram["transferred"],
        dirty_rate=ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096),
        bandwidth=round(ram.get("mbps", 0.0) * 1_000_000 / 8),
        downtime=downtime,
        expected_downtime=None if expected is None else expected / 1000,
        throttle=told.get("cpu-throttle-percentage", 0),
        phase=_phase(str(told.get("status"))),
    )


def is_switched(status: str) -> bool:
    """Whether an end that says this of its migration has switched to postcopy."""
    return status.startswith("postcopy-")


def _phase(status: str) -> Phase:
    if not is_switched(status):
        return "precopy"
    return "postcopy" if status == "postcopy-active" else "cut"
