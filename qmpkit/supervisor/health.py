"""From the results of a machine's checks to whether it is starting, healthy or unhealthy.

Pure.  Times are of one clock, in seconds; a machine that is paused is not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from qmpkit.spec.health import Health

__all__ = ["Healthy", "Result", "Starting", "Unhealthy", "Verdict", "Vitals", "judge"]


@attrs.frozen
class Result:
    """One check made: `check` is its text (`str`), `time` when it was over, `why` it failed."""

    check: str
    time: float
    passed: bool
    why: str = ""


@attrs.frozen
class Starting:
    """Some checks have never passed; `why` names them."""

    why: str


@attrs.frozen
class Healthy:
    """All checks have passed, and none has failed too often since."""


@attrs.frozen
class Unhealthy:
    """Some checks have failed too often; `why` names them, with their last failure."""

    why: str


Verdict = Starting | Healthy | Unhealthy


@attrs.frozen
class _Pulse:
    """One check's past: `failures` in a row that count."""

    last: float
    passed: bool = False  # ever
    failures: int = 0
    why: str = ""

    def after(self, result: Result, counts_from: float) -> _Pulse:
        if result.passed:
            return _Pulse(result.time, passed=True)
        # Who comes up slowly is not ill, but who has been well and fell ill again is.
        counts = self.passed or result.time >= counts_from
        return attrs.evolve(
            self,
            last=result.time,
            failures=self.failures + counts,
            why=result.why or "it failed",
        )


@attrs.frozen
class Vitals:
    """What a machine's checks have told since it was `started`."""

    health: Health
    started: float
    pulses: Mapping[str, _Pulse] = attrs.field(factory=dict)

    def told(self, result: Result) -> Vitals:
        """With one more result; one that is older than what is known, or of no check, is void."""
        known = self.pulses.get(result.check, _Pulse(self.started))
        if result.time < known.last or result.check not in map(str, self.health.checks):
            return self
        pulse = known.after(result, self.started + self.health.start_period)
        return attrs.evolve(self, pulses={**self.pulses, result.check: pulse})

    def due(self) -> Mapping[str, float]:
        """When each check is to be made next."""
        return {str(check): self._next(str(check)) for check in self.health.checks}

    def _next(self, check: str) -> float:
        pulse = self.pulses.get(check)
        if pulse is None:
            return self.started
        health = self.health
        return pulse.last + (health.interval if pulse.passed else health.start_interval)

    @property
    def verdict(self) -> Verdict:
        """What they come to."""
        ill = [name for name, pulse in self.pulses.items() if self._is_ill(pulse)]
        if ill:
            return Unhealthy(" and ".join(f"{name}: {self._times(name)}" for name in ill))
        names = [str(check) for check in self.health.checks]
        if new := [name for name in names if not self._passed(name)]:
            return Starting(" and ".join(f"{name}: {self._so_far(name)}" for name in new))
        return Healthy()

    def _is_ill(self, pulse: _Pulse) -> bool:
        return pulse.failures >= self.health.retries

    def _passed(self, name: str) -> bool:
        return name in self.pulses and self.pulses[name].passed

    def _times(self, name: str) -> str:
        pulse = self.pulses[name]
        times = "once" if pulse.failures == 1 else f"{pulse.failures} times in a row"
        return f"{pulse.why}, {times}"

    def _so_far(self, name: str) -> str:
        return f"not yet, {self.pulses[name].why}" if name in self.pulses else "not made yet"


def judge(health: Health, started: float, results: Iterable[Result]) -> Verdict:
    """The verdict of a whole series of results, in the order in which they came."""
    vitals = Vitals(health, started)
    for result in results:
        vitals = vitals.told(result)
    return vitals.verdict
