"""How a process ended."""

from __future__ import annotations

import os
import signal

import attrs

__all__ = ["ExitStatus"]


@attrs.frozen
class ExitStatus:
    """How a process ended: with an exit `code` or by a `signal`; both None when unknown."""

    code: int | None = None
    signal: int | None = None

    @classmethod
    def from_wait(cls, status: int | None) -> ExitStatus:
        """Decode the status of wait(2); None is an unknown end."""
        if status is None:
            return cls()
        code = os.waitstatus_to_exitcode(status)
        return cls(code=code) if code >= 0 else cls(signal=-code)

    @property
    def success(self) -> bool:
        """True for exit status 0 alone."""
        return self.code == 0

    def __str__(self) -> str:
        if self.code is not None:
            return f"exit status {self.code}"
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        return "exit status unknown"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time signals between SIGRTMIN and SIGRTMAX have no names
        return f"signal {number}"
