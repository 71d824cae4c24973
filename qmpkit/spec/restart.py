"""When a machine that has ended is started again: plain data, judged by the supervisor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import attrs

from qmpkit.errors import Fault, SpecInvalid

__all__ = ["NEVER", "Policy", "Restart", "restart_faults", "to_restart"]

Policy = Literal["never", "on-failure", "always"]


@attrs.frozen(kw_only=True)
class Restart:
    """How a machine's end is answered.

    `policy`: "never"; "on-failure" after a crash, a kill from outside, a guest's panic
    or a failed start, but not after the guest's own shutdown; "always" after any end that
    nobody asked for.  The first restart comes after `delay` seconds, each further one
    after `factor` times as long, up to `max_delay`, each varied by up to `jitter` (a
    fraction) so that many machines do not start at once.  A machine that has run for
    `period` seconds begins anew.  More than `intensity` restarts within `period`
    seconds are a crash loop, which waits for a person.
    """

    policy: Policy = "on-failure"
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: float = 0.1
    intensity: int = 5
    period: float = 600.0


def to_restart(value: str | Restart | None) -> Restart:
    """A word is the policy, with everything else as it is by default; None is "never"."""
    if isinstance(value, Restart):
        return value
    if value is None:
        return Restart(policy="never")
    if value not in get_args(Policy):
        hint = " or ".join(f'"{word}"' for word in get_args(Policy))
        raise SpecInvalid([Fault("restart", f"cannot be {value!r}", hint)])
    return Restart(policy=value)  # type: ignore[arg-type]


NEVER = Restart(policy="never")


def restart_faults(restart: Restart) -> Iterator[Fault]:
    """Numbers that make no sense."""
    for name in ("delay", "max_delay"):
        if not 0 <= getattr(restart, name) < float("inf"):
            yield Fault(f"restart.{name}", "must be seconds, 0 or more")
    if not 0 < restart.period < float("inf"):
        yield Fault("restart.period", "must be seconds, more than 0")
    if not 1 <= restart.factor <= 100:
        yield Fault("restart.factor", "must be between 1 and 100")
    if not 0 <= restart.jitter <= 1:
        yield Fault("restart.jitter", "must be between 0 and 1")
    if restart.intensity < 0:
        yield Fault("restart.intensity", "must be 0 or more")
    if restart.max_delay < restart.delay:
        yield Fault("restart.max_delay", "must not be less than delay")
