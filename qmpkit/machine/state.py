"""The life of a machine as a table: what each event makes of each state.

Pure.  These are the few states that call for different behaviour;
`vm.execute("query-status")` tells QEMU's exact run state.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["EVENTS", "TABLE", "State", "Trigger", "state_of", "step", "trigger_of"]


class State(Enum):
    """What a machine is doing."""

    INCOMING = "incoming"  # waits for a migration or a saved state
    PAUSED = "paused"  # vCPUs stopped by us (also before the first resume)
    RUNNING = "running"
    SUSPENDED = "suspended"  # the guest sleeps (ACPI S3)
    PANICKED = "panicked"  # the guest's kernel reported a panic
    SHUTDOWN = "shutdown"  # the guest has powered off, QEMU is still there
    FAILED = "failed"  # vCPUs stopped by QEMU: I/O error, internal error, watchdog
    GONE = "gone"  # the process has ended


class Trigger(Enum):
    """What can change a state: QMP events by their names, and the process's end."""

    STOP = "STOP"
    RESUME = "RESUME"
    RESET = "RESET"
    SUSPEND = "SUSPEND"
    WAKEUP = "WAKEUP"
    SHUTDOWN = "SHUTDOWN"
    GUEST_PANICKED = "GUEST_PANICKED"
    IO_ERROR = "BLOCK_IO_ERROR"
    ENDED = "ended"


EVENTS = tuple(trigger.value for trigger in Trigger if trigger is not Trigger.ENDED)

S, T = State, Trigger

# SHUTDOWN and GUEST_PANICKED say why vCPUs are about to stop and are followed by STOP,
# so STOP changes nothing in the states they lead to.
TABLE: Mapping[State, Mapping[Trigger, State]] = {
    S.INCOMING: {
        T.STOP: S.PAUSED,
        T.RESUME: S.RUNNING,
        T.SHUTDOWN: S.SHUTDOWN,
        T.ENDED: S.GONE,
    },
    S.PAUSED: {
        T.RESUME: S.RUNNING,
        T.SHUTDOWN: S.SHUTDOWN,
        T.GUEST_PANICKED: S.PANICKED,
        T.ENDED: S.GONE,
    },
    S.RUNNING: {
        T.STOP: S.PAUSED,
        T.SUSPEND: S.SUSPENDED,
        T.SHUTDOWN: S.SHUTDOWN,
        T.GUEST_PANICKED: S.PANICKED,
        T.IO_ERROR: S.FAILED,
        T.ENDED: S.GONE,
    },
    S.SUSPENDED: {
        T.STOP: S.PAUSED,
        T.RESUME: S.RUNNING,
        T.WAKEUP: S.RUNNING,
        T.RESET: S.RUNNING,
        T.SHUTDOWN: S.SHUTDOWN,
        T.ENDED: S.GONE,
    },
    S.PANICKED: {
        T.RESUME: S.RUNNING,
        T.RESET: S.PAUSED,
        T.SHUTDOWN: S.PANICKED,
        T.ENDED: S.GONE,
    },
    S.SHUTDOWN: {
        T.RESUME: S.RUNNING,
        T.RESET: S.PAUSED,
        T.ENDED: S.GONE,
    },
    S.FAILED: {
        T.RESUME: S.RUNNING,
        T.RESET: S.PAUSED,
        T.SHUTDOWN: S.SHUTDOWN,
        T.GUEST_PANICKED: S.PANICKED,
        T.ENDED: S.GONE,
    },
    S.GONE: {},
}


def step(state: State, trigger: Trigger) -> State:
    """The state after *trigger*; a pair that is not in the table changes nothing."""
    return TABLE[state].get(trigger, state)


def trigger_of(name: str, data: Mapping[str, Any]) -> Trigger | None:
    """The trigger in a QMP event; None when the event changes no state.

    BLOCK_IO_ERROR stops the vCPUs only with `action: stop`; GUEST_PANICKED with
    `action: run` reports a crash that the guest survives.
    """
    trigger = Trigger(name)
    if trigger is Trigger.IO_ERROR and data.get("action") != "stop":
        return None
    if trigger is Trigger.GUEST_PANICKED and data.get("action") == "run":
        return None
    return trigger


_BY_STATUS = {
    "inmigrate": S.INCOMING,
    "running": S.RUNNING,
    "suspended": S.SUSPENDED,
    "guest-panicked": S.PANICKED,
    "shutdown": S.SHUTDOWN,
    "io-error": S.FAILED,
    "internal-error": S.FAILED,
    "watchdog": S.FAILED,
}


def state_of(status: str) -> State:
    """The state of a QEMU with this run state: those we have no name for stand still."""
    return _BY_STATUS.get(status, S.PAUSED)
