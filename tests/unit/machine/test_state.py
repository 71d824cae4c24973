"""The life of a machine as a table: every pair is tried."""

from __future__ import annotations

from itertools import product

import pytest

from qmpkit.machine.state import EVENTS, TABLE, State, Trigger, step, trigger_of

S, T = State, Trigger

# Every pair whose outcome differs from "nothing changes", written out a second time so that
# a slip in the table is seen.
CHANGES = {
    (S.INCOMING, T.STOP): S.PAUSED,
    (S.INCOMING, T.RESUME): S.RUNNING,
    (S.INCOMING, T.SHUTDOWN): S.SHUTDOWN,
    (S.PAUSED, T.RESUME): S.RUNNING,
    (S.PAUSED, T.SHUTDOWN): S.SHUTDOWN,
    (S.PAUSED, T.GUEST_PANICKED): S.PANICKED,
    (S.RUNNING, T.STOP): S.PAUSED,
    (S.RUNNING, T.SUSPEND): S.SUSPENDED,
    (S.RUNNING, T.SHUTDOWN): S.SHUTDOWN,
    (S.RUNNING, T.GUEST_PANICKED): S.PANICKED,
    (S.RUNNING, T.IO_ERROR): S.FAILED,
    (S.SUSPENDED, T.STOP): S.PAUSED,
    (S.SUSPENDED, T.RESUME): S.RUNNING,
    (S.SUSPENDED, T.WAKEUP): S.RUNNING,
    (S.SUSPENDED, T.RESET): S.RUNNING,
    (S.SUSPENDED, T.SHUTDOWN): S.SHUTDOWN,
    (S.PANICKED, T.RESUME): S.RUNNING,
    (S.PANICKED, T.RESET): S.PAUSED,
    (S.SHUTDOWN, T.RESUME): S.RUNNING,
    (S.SHUTDOWN, T.RESET): S.PAUSED,
    (S.FAILED, T.RESUME): S.RUNNING,
    (S.FAILED, T.RESET): S.PAUSED,
    (S.FAILED, T.SHUTDOWN): S.SHUTDOWN,
    (S.FAILED, T.GUEST_PANICKED): S.PANICKED,
}


@pytest.mark.parametrize(("state", "trigger"), list(product(S, T)))
def test_every_pair(state: State, trigger: Trigger) -> None:
    expected = S.GONE if trigger is T.ENDED else CHANGES.get((state, trigger), state)
    assert step(state, trigger) is expected


def test_gone_is_final() -> None:
    assert not TABLE[S.GONE]


def test_every_state_has_a_row() -> None:
    assert set(TABLE) == set(S)


def test_events_are_qmp_names() -> None:
    assert "ended" not in EVENTS
    assert {"STOP", "RESUME", "SHUTDOWN", "GUEST_PANICKED"} <= set(EVENTS)


@pytest.mark.parametrize(
    ("name", "data", "trigger"),
    [
        ("STOP", {}, T.STOP),
        ("BLOCK_IO_ERROR", {"action": "stop"}, T.IO_ERROR),
        ("BLOCK_IO_ERROR", {"action": "report"}, None),
        ("GUEST_PANICKED", {"action": "pause"}, T.GUEST_PANICKED),
        ("GUEST_PANICKED", {"action": "run"}, None),
    ],
)
def test_which_events_change_the_state(
    name: str, data: dict[str, str], trigger: Trigger | None
) -> None:
    assert trigger_of(name, data) is trigger
