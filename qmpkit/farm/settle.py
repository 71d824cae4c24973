"""When a machine that was declared has come to something that one can tell."""

from __future__ import annotations

from qmpkit.errors import cause_of
from qmpkit.farm.outcome import Did, Result
from qmpkit.machine.state import State
from qmpkit.supervisor.health import Healthy, Unhealthy
from qmpkit.supervisor.kept import Kept

__all__ = ["settled"]

_RUNS = (State.RUNNING.value, State.SUSPENDED.value)
_STUCK = ("silent", "unreachable")


async def settled(kept: Kept, did: Did) -> Result:
    """Wait until *kept* runs and does its work, or will not; *did* is for the first case."""
    await kept.until(lambda: _verdict(kept, did) is not None)
    verdict = _verdict(kept, did)
    assert verdict is not None, "nothing has happened since"
    return verdict


def _verdict(kept: Kept, did: Did) -> Result | None:
    if not kept.tended or kept.state in _STUCK:
        return Result(kept.name, "failed", f"{kept.state}: {kept.cause}")
    if kept.state == "blocked":
        return Result(kept.name, "blocked", kept.cause)
    if isinstance(kept.health, Unhealthy):
        return Result(kept.name, "failed", f"unhealthy: {kept.health.why}")
    if kept.refusal is not None:
        return Result(kept.name, "failed", cause_of(kept.refusal))
    if kept.state in _RUNS and (kept.record.health is None or isinstance(kept.health, Healthy)):
        return Result(kept.name, did)
    if kept.state == State.PAUSED.value and kept.declared == "paused":
        return Result(kept.name, did)
    return None
