"""What a migration that came to nothing is told as, whatever has failed first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from qmpkit import MachineDied, MachineGone, MigrationFailed, MigrationLost
from qmpkit.machine.report import ExitCause, ExitReport
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.migration.outcomes import lost, told_as
from qmpkit.process.status import ExitStatus
from qmpkit.qmp.errors import CommandRefused, MonitorLost

REFUSED = CommandRefused("mover", "migrate", {}, {"error": {"class": "G", "desc": "no route"}})
DIED = MachineDied(ExitReport("there", ExitCause.KILLED, ExitStatus(signal=9), 1.0))
ENDED = MachineDied(ExitReport("mover", ExitCause.KILLED, ExitStatus(signal=9), 1.0))
THERE = MigrationFailed("mover", "the destination's QEMU has ended")


@attrs.define
class Ends:
    """A source that lives on, or has *died*, and a destination that has ended."""

    died: MachineDied | None = None
    name: str = "mover"
    maimed: str = ""
    lost: None = None

    @property
    def qmp(self) -> Ends:
        return self

    def ended(self, asked: str) -> MachineDied | None:
        return self.died

    def has_ended(self) -> MigrationFailed:
        return THERE


def told(error: BaseException, died: MachineDied | None = None) -> BaseException:
    ends: Any = Ends(died)
    return told_as(ends, ends, error, "farewell")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (MigrationFailed("mover", "it does not converge"), "it does not converge"),
        # Its memory was thought to be at both ends, but the source had failed to switch.
        (MigrationLost("mover", "the destination's QEMU has ended", "bye"), "QEMU has ended"),
        (REFUSED, "no route"),
        (JobFailed("mover", "mirror0", "move disk0", "disk full"), "disk full"),
    ],
)
def test_the_machine_is_as_it_was(error: BaseException, why: str) -> None:
    failed = told(error)
    assert type(failed) is MigrationFailed
    assert why in failed.why and failed.said == "farewell" and failed.machine == "mover"


@pytest.mark.parametrize(
    "error", [DIED, MachineGone("there", "migrating", DIED.report), MonitorLost("there", "eof")]
)
def test_what_ends_at_the_destination_is_its_end(error: BaseException) -> None:
    assert told(error) is THERE


@pytest.mark.parametrize("error", [DIED, MigrationFailed("mover", "cut"), MigrationLost("m", "w")])
def test_the_end_of_the_source_is_what_counts(error: BaseException) -> None:
    assert told(error, ENDED) is ENDED


@pytest.mark.parametrize("error", [REFUSED, DIED, MigrationLost("mover", "it has ended")])
def test_a_source_that_has_not_got_over_it_says_so(error: BaseException) -> None:
    ends: Any = Ends(maimed="start it again")
    failed = told_as(ends, ends, error, "farewell")
    assert isinstance(failed, MigrationFailed) and failed.why.endswith("; start it again")


def test_what_nobody_foresaw_is_told_as_it_is() -> None:
    bug = ZeroDivisionError()
    assert told(bug) is bug


@pytest.mark.parametrize(
    ("within", "why"),
    [
        (lambda lost: lost, "cut 51 times"),
        (lambda lost: ExceptionGroup("", [ValueError("late"), lost]), "cut 51 times"),
        (lambda _: ExceptionGroup("", [ValueError("late")]), "late"),
    ],
)
def test_a_guest_is_lost_by_what_was_first(
    within: Callable[[MigrationLost], BaseException], why: str
) -> None:
    error = within(MigrationLost("mover", "cut 51 times"))
    assert lost("mover", error, 5.0).why == why
