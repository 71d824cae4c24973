"""How an end is known that nobody saw."""

from __future__ import annotations

import pytest

from qmpkit.machine.report import ExitCause
from qmpkit.process.identity import Standing
from qmpkit.supervisor.adopt import end_found
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.record import End
from tests.unit.supervisor.test_journal import record


def end(cause: ExitCause) -> End:
    return End(cause, "it ended", 10.0, 1_000_000.0, "boot")


@pytest.mark.parametrize("standing", [Standing.GONE, Standing.REUSED, Standing.ZOMBIE])
@pytest.mark.parametrize("phase", ["starting", "up", "ending", "down"])
@pytest.mark.parametrize("declared", ["running", "paused", "stopped"])
def test_the_end_of_one_that_is_not_alive(phase: str, declared: str, standing: Standing) -> None:
    seen = end(ExitCause.GUEST_SHUTDOWN)
    it = record(phase=phase, declared=declared, end=seen)
    found = end_found(it, standing, "boot")
    match phase:
        case "ending" | "down":
            assert found == seen
        case "starting":
            assert found.cause is Mishap.INTERRUPTED
        case _:
            wanted = ExitCause.HOST_QUIT if declared == "stopped" else ExitCause.CRASHED
            assert found.cause is wanted


@pytest.mark.parametrize("phase", ["starting", "up", "ending", "down"])
def test_after_a_reboot_all_were_interrupted(phase: str) -> None:
    standing = Standing.GONE if phase == "down" else Standing.REBOOTED
    found = end_found(record(phase=phase, end=end(ExitCause.CRASHED)), standing, "another")
    assert found.cause is Mishap.HOST_REBOOT
    assert found.why == "the host was rebooted"
