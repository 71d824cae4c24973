"""Whether a machine that has ended starts again, when, and when a person has to look.

Pure.  The rules are those of an Erlang/OTP supervisor (`intensity` within `period`) and of
systemd's Restart=, with its backoff.  Times are seconds since the epoch, because a history
outlives both the supervisor and the host's uptime; to a clock that was set back the
restarts in its future have just happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs

from qmpkit.machine.report import ExitCause
from qmpkit.spec.restart import Restart

__all__ = [
    "Again",
    "Cause",
    "CrashLoop",
    "Decision",
    "FAILURES",
    "History",
    "Mishap",
    "Stay",
    "after_end",
    "decide",
]


class Mishap(Enum):
    """Ends that QEMU's exit does not tell of."""

    START_FAILED = "failed start"
    WATCHDOG = "watchdog"  # the guest did not feed its watchdog, QEMU stopped its vCPUs
    INTERNAL_ERROR = "internal error"  # QEMU gave up running the vCPUs (RunState internal-error)
    LOST = "lost in migration"  # part of its memory was at each end, and one of them ended
    UNHEALTHY = "unhealthy"  # its checks failed and the supervisor ended it
    HOST_REBOOT = "host reboot"  # the host went down under it
    INTERRUPTED = "interrupted start"  # its supervisor ended while it was starting


Cause = ExitCause | Mishap
"""Why a machine is down."""

# A reset of a `no_reboot` machine is not one of them: it says "a reboot ends the machine", and
# on microvm, which has no power button, a reset is how a guest powers off.  "always" starts it
# again.  A panic that reboots is told apart by the guest's panic device.
FAILURES: frozenset[Cause] = frozenset(
    {
        ExitCause.GUEST_PANIC,
        ExitCause.KILLED,
        ExitCause.CRASHED,
        Mishap.START_FAILED,
        Mishap.WATCHDOG,
        Mishap.INTERNAL_ERROR,
        Mishap.LOST,
        Mishap.UNHEALTHY,
    }
)

# Nobody's failure, and under no policy a reason to stay down.
_INNOCENT: Mapping[Cause, str] = {
    Mishap.HOST_REBOOT: "the host was rebooted under it",
    Mishap.INTERRUPTED: "its start was interrupted",
}


@attrs.frozen
class Again:
    """It starts again in `after` seconds; `counts`: as a restart, in the intensity."""

    after: float
    why: str
    counts: bool = True


@attrs.frozen
class Stay:
    """It stays down until somebody starts it."""

    why: str


@attrs.frozen
class CrashLoop:
    """It ended too often: it stays down until a person has looked (`History.forgiven`)."""

    why: str


Decision = Again | Stay | CrashLoop


@attrs.frozen(kw_only=True)
class History:
    """What a machine's past says about its next restart.

    `restarts`: when it was started again, oldest first, no further back than a period;
    `row`: restarts since it last ran for a whole period, which is how far the delay has
    grown; `up_since`: when it last came up, None while it is down; `due`: when the restart
    that was decided on may begin, None without one; `stays`: why it stays down; and
    `crash_loop`: why it waits for a person; None when it does not.
    """

    restarts: tuple[float, ...] = ()
    row: int = 0
    up_since: float | None = None
    due: float | None = None
    stays: str | None = None
    crash_loop: str | None = None

    def starting(self, now: float) -> History:
        """A start begins: written down before the act, so that a crash cannot hide a restart."""
        if self.due is None:
            return attrs.evolve(self, stays=None)
        earlier = tuple(min(time, now) for time in self.restarts)
        return attrs.evolve(self, restarts=(*earlier, now), row=self.row + 1, due=None)

    def came_up(self, now: float) -> History:
        """QEMU runs: the quiet time counts from here."""
        return attrs.evolve(self, up_since=now)

    def left(self, restart: Restart, now: float) -> float:
        """Seconds until a restart that was decided on; 0 without one.

        Never more than a delay can be, also when the clock was set back meanwhile.
        """
        longest = restart.max_delay * (1 + restart.jitter)
        return 0.0 if self.due is None else min(max(self.due - now, 0.0), longest)

    def ended(self, period: float, now: float) -> History:
        """It is down: what lies more than *period* seconds back no longer counts."""
        if self.up_since is not None and now - self.up_since >= period:
            return History(crash_loop=self.crash_loop)
        kept = tuple(min(time, now) for time in self.restarts if time > now - period)
        return attrs.evolve(self, restarts=kept, up_since=None, due=None)

    def decided(self, decision: Decision, now: float) -> History:
        """What a decision leaves to be remembered."""
        match decision:
            case Again():
                due = now + decision.after if decision.counts else None
                return attrs.evolve(self, due=due, stays=None)
            case CrashLoop():
                return attrs.evolve(self, crash_loop=decision.why)
            case Stay():
                return History(stays=decision.why, crash_loop=self.crash_loop)

    def forgiven(self) -> History:
        """A person has looked, or starts it by hand: everything begins anew."""
        return History()

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON; the record it is part of carries the version."""
        data = attrs.asdict(self)
        return {**data, "restarts": list(self.restarts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """The inverse of `to_dict`; TypeError or ValueError for what it never writes."""
        history = cls(**{**data, "restarts": tuple(data.get("restarts", ()))})
        times = (*history.restarts, history.up_since or 0, history.due or 0)
        if not all(_is_time(time) for time in times):
            raise ValueError("restarts, up_since and due are seconds since the epoch")
        if type(history.row) is not int or history.row < 0:
            raise ValueError("row counts from 0")
        if not all(isinstance(why, str | None) for why in (history.stays, history.crash_loop)):
            raise TypeError("stays and crash_loop are a text or null")
        return history


def _is_time(value: object) -> bool:
    # JSON in Python lets NaN and Infinity through, and neither ever comes to pass.
    return type(value) in (int, float) and abs(float(value)) < float("inf")  # type: ignore[arg-type]


def decide(
    restart: Restart,
    history: History,
    end: Cause,
    now: float,
    random: float,
    *,
    asked: bool = False,
) -> Decision:
    """What follows the *end* of a machine with that *history*.

    *random* is from 0 to 1, for the jitter.  *asked*: a person or a program wanted it to
    end; a guest that powers off because it was told to reports the same cause as one that
    does so by itself, so the cause alone cannot say.
    """
    if asked or end is ExitCause.HOST_QUIT:
        return Stay("it was stopped on request")
    if history.crash_loop is not None:
        return CrashLoop(history.crash_loop)
    if end in _INNOCENT:
        return Again(0.0, _INNOCENT[end], counts=False)
    if why := _against(restart, end):
        return Stay(why)
    return _limited(restart, history.ended(restart.period, now), end, now, random)


def after_end(
    restart: Restart,
    history: History,
    end: Cause,
    now: float,
    random: float,
    *,
    asked: bool = False,
) -> tuple[Decision, History]:
    """`decide`, with the history that goes into the record."""
    decision = decide(restart, history, end, now, random, asked=asked)
    return decision, history.ended(restart.period, now).decided(decision, now)


def _against(restart: Restart, end: Cause) -> str:
    """Why the policy leaves it down; empty when it does not."""
    if restart.policy == "never":
        return f'{end.value}; its restart policy is "never"'
    if restart.policy == "on-failure" and end not in FAILURES:
        return f'{end.value} is no failure, and its restart policy is "on-failure"'
    return ""


def _limited(restart: Restart, history: History, end: Cause, now: float, random: float) -> Decision:
    delay = _delay(restart, history.row, random)
    # The window that ends with the restart itself, not with this moment: a start that comes
    # late is near to those that follow it.
    recent = sum(time > now + delay - restart.period for time in history.restarts)
    if recent >= restart.intensity:
        return CrashLoop(_too_often(restart, recent, end))
    return Again(delay, f"{end.value}; restart {recent + 1} of {restart.intensity}")


def _too_often(restart: Restart, recent: int, end: Cause) -> str:
    times = "once" if recent == 1 else f"{recent} times"
    limit = f"no more than {restart.intensity} are allowed"
    return f"{end.value}, after it was restarted {times} within {restart.period:g} s: {limit}"


def _delay(restart: Restart, row: int, random: float) -> float:
    # Past 64 the largest factor has long reached any delay, and a float its own limit.
    grown = restart.delay * restart.factor ** min(row, 64)
    return min(grown, restart.max_delay) * (1 + restart.jitter * (2 * random - 1))
