"""From what was seen to the cause of an end, and the sentence a person reads."""

from __future__ import annotations

import pytest

from qmpkit.machine.report import ExitCause, ExitReport, judge
from qmpkit.process.status import ExitStatus

C = ExitCause
OK, FAILED = ExitStatus(0, None), ExitStatus(1, None)
KILLED, ABORTED, UNKNOWN = ExitStatus(None, 9), ExitStatus(None, 6), ExitStatus(None, None)


@pytest.mark.parametrize(
    ("asked", "reason", "panicked", "status", "cause"),
    [
        (False, "guest-shutdown", False, OK, C.GUEST_SHUTDOWN),
        (False, "guest-reset", False, OK, C.GUEST_RESET),
        (False, "guest-panic", True, OK, C.GUEST_PANIC),
        (False, None, True, OK, C.GUEST_PANIC),
        (False, "host-qmp-quit", False, OK, C.HOST_QUIT),
        (False, "host-signal", False, OK, C.KILLED),
        (False, None, False, KILLED, C.KILLED),
        (False, None, False, ABORTED, C.CRASHED),
        (False, None, False, FAILED, C.CRASHED),
        (False, None, False, OK, C.CRASHED),
        (False, None, False, UNKNOWN, C.CRASHED),
        (False, "guest-shutdown", False, ABORTED, C.CRASHED),
        (False, "guest-shutdown", False, UNKNOWN, C.GUEST_SHUTDOWN),
        (True, "host-qmp-quit", False, OK, C.HOST_QUIT),
        (True, "host-signal", False, OK, C.HOST_QUIT),
        (True, None, False, KILLED, C.HOST_QUIT),
        (True, "guest-shutdown", False, OK, C.GUEST_SHUTDOWN),
        (True, None, True, OK, C.GUEST_PANIC),
        (True, "host-qmp-quit", False, ABORTED, C.CRASHED),
        (True, "guest-shutdown", False, ABORTED, C.CRASHED),
        (False, "host-qmp-system-reset", False, OK, C.HOST_QUIT),
    ],
)
def test_judge(
    asked: bool, reason: str | None, panicked: bool, status: ExitStatus, cause: ExitCause
) -> None:
    assert judge(asked=asked, reason=reason, panicked=panicked, status=status) is cause


@pytest.mark.parametrize(
    ("reason", "status", "cause"),
    [
        (None, OK, C.GUEST_SHUTDOWN),
        (None, FAILED, C.CRASHED),
        (None, KILLED, C.KILLED),
        (None, UNKNOWN, C.CRASHED),
        ("host-signal", OK, C.KILLED),
    ],
)
def test_a_board_whose_qemu_says_nothing_of_a_poweroff(
    reason: str | None, status: ExitStatus, cause: C
) -> None:
    seen = judge(asked=False, reason=reason, panicked=False, status=status, silent_poweroff=True)
    assert seen is cause


def test_only_deaths_out_of_the_blue_are_unexpected() -> None:
    assert {cause for cause in C if not cause.expected} == {C.KILLED, C.CRASHED}


def test_a_crash_quotes_the_last_words() -> None:
    report = ExitReport("web", C.CRASHED, ABORTED, 12.34, stderr_tail="oops\nAborted\n")
    assert str(report) == (
        "QEMU crashed (killed by SIGABRT) after 12.3 s; QEMU's last words:\noops\nAborted"
    )


def test_an_orderly_end_does_not() -> None:
    report = ExitReport("web", C.GUEST_SHUTDOWN, OK, 3, stderr_tail="warning: x")
    assert str(report) == "the guest shut itself down after 3.0 s"


def test_a_kill_names_the_signal() -> None:
    assert "(killed by SIGKILL)" in str(ExitReport("web", C.KILLED, KILLED, 1))
    assert "(SIGTERM)" in str(ExitReport("web", C.KILLED, OK, 1, reason="host-signal"))
