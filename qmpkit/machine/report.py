"""How a machine ended, told so that a person or a restart policy can act on it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs

from qmpkit.process.status import ExitStatus

__all__ = ["MOVED", "ExitCause", "ExitReport", "judge"]

MOVED = "migrated"
"""The reason of a QEMU that was ended because its guest is another's now."""


class ExitCause(Enum):
    """Why QEMU is no longer there."""

    GUEST_SHUTDOWN = "guest shutdown"
    GUEST_RESET = "guest reset"
    GUEST_PANIC = "guest panic"
    HOST_QUIT = "host quit"
    KILLED = "killed"
    CRASHED = "crashed"

    @property
    def expected(self) -> bool:
        """True when the guest or the owner ended it; False for a death out of the blue."""
        return self not in (ExitCause.KILLED, ExitCause.CRASHED)


@attrs.frozen
class ExitReport:
    """The end of one machine.

    `status` is the process's exit status, `stderr_tail` QEMU's last lines,
    `uptime` the seconds from start to end, `panic` what the guest told of its
    panic (GUEST_PANICKED's `info`), `reason` the reason in QEMU's SHUTDOWN event, or
    `MOVED`.
    """

    machine: str
    cause: ExitCause
    status: ExitStatus
    uptime: float
    reason: str | None = None
    panic: Mapping[str, Any] | None = None
    stderr_tail: str = ""

    @property
    def expected(self) -> bool:
        """True when the guest or the owner ended it; False for a death out of the blue."""
        return self.cause.expected

    def __str__(self) -> str:
        text = f"{self._sentence()} after {self.uptime:.1f} s"
        if self.cause.expected or not self.stderr_tail.strip():
            return text
        return f"{text}; QEMU's last words:\n{self.stderr_tail.strip()}"

    def _sentence(self) -> str:
        match self.cause:
            case ExitCause.GUEST_SHUTDOWN:
                return "the guest shut itself down"
            case ExitCause.GUEST_RESET:
                return "the guest rebooted, which ends this machine"
            case ExitCause.GUEST_PANIC:
                return "the guest panicked"
            case ExitCause.HOST_QUIT if self.reason == MOVED:
                return "its guest has migrated"
            case ExitCause.HOST_QUIT:
                return "it was stopped on request"
            case ExitCause.KILLED:
                by = "SIGTERM" if self.reason == "host-signal" else str(self.status)
                return f"QEMU was killed from outside ({by})"
            case ExitCause.CRASHED if self.status == ExitStatus():
                return "QEMU vanished, and nobody saw how"
            case ExitCause.CRASHED:
                return f"QEMU crashed ({self.status})"


# Signals that only a person, a tool or the kernel's OOM killer sends; the others
# (SIGABRT, SIGSEGV, …) are QEMU's own doing.
_SENT_FROM_OUTSIDE = frozenset({1, 2, 3, 9, 15})

_BY_REASON = {
    "guest-shutdown": ExitCause.GUEST_SHUTDOWN,
    "guest-reset": ExitCause.GUEST_RESET,
    "guest-panic": ExitCause.GUEST_PANIC,
    "host-qmp-quit": ExitCause.HOST_QUIT,
    "host-qmp-system-reset": ExitCause.HOST_QUIT,  # our `reset` of a machine with no_reboot
    "host-ui": ExitCause.HOST_QUIT,
    "host-signal": ExitCause.KILLED,
}


def judge(
    *,
    asked: bool,
    reason: str | None,
    panicked: bool,
    status: ExitStatus,
    silent_poweroff: bool = False,
) -> ExitCause:
    """Derive the cause from what was seen before the end.

    *asked*: we had told QEMU to end (quit or a signal).  *reason*: from the last
    SHUTDOWN event, None without one.  *silent_poweroff*: the board's QEMU may exit
    well without that event when its guest powers off.  An abnormal status outranks all
    else: a QEMU that crashes while it shuts down has crashed, also when told to.
    """
    if status.signal is not None and status.signal not in _SENT_FROM_OUTSIDE:
        return ExitCause.CRASHED
    if asked:
        return _by_guest(reason, panicked) or ExitCause.HOST_QUIT
    if status.signal is not None:
        return ExitCause.KILLED
    if status.code not in (0, None):
        return ExitCause.CRASHED
    if panicked:
        return ExitCause.GUEST_PANIC
    if reason is None and status.code == 0 and silent_poweroff:
        return ExitCause.GUEST_SHUTDOWN
    return _BY_REASON.get(reason or "", ExitCause.CRASHED)


def _by_guest(reason: str | None, panicked: bool) -> ExitCause | None:
    """The guest's own end, when it came before ours took effect."""
    if panicked:
        return ExitCause.GUEST_PANIC
    cause = _BY_REASON.get(reason or "")
    ours = (None, ExitCause.HOST_QUIT, ExitCause.KILLED)
    return None if cause in ours else cause
