"""What the command's exit status says, and which error gives which."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any

from qmpkit.errors import HostLacks, ImageFailed, ImageInUse, PullFailed, QmpkitError, SpecInvalid

__all__ = ["EXIT_TABLE", "OF_A_NAMED_FILE", "DaemonSaid", "Exit", "Refusal", "exit_of"]


class Exit(IntEnum):
    """Exit statuses of every `qmpkit` command."""

    OK = 0
    FAILED = 1
    MISTAKE = 2
    HOST = 3
    MONITOR = 4
    INTERRUPTED = 130
    UNREAD = 141


EXIT_TABLE = """\
Exit status:
  0    done; for run: the guest shut itself down, or it was stopped on request
  1    QEMU, qemu-img, the guest or a download failed: a crash, a refusal
  2    a mistake in the command line, the profile or a file it names
  3    this host lacks something: KVM, a program, a right
  4    the monitor of another QEMU is absent, busy, silent or lost
  130  interrupted by Ctrl-C before there was anything to stop
  141  nobody read the output any more
"""


# Why a file that was named cannot be read or made.
OF_A_NAMED_FILE = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


class Refusal(QmpkitError):
    """A mistake in the command line that no spec has a place for."""


class DaemonSaid(QmpkitError):
    """The daemon's own error: `kinds` are the classes it is of, `faults` its faults.

    `cause`: the class of what the system said of a file, empty where it was not that.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        self.kinds: tuple[str, ...] = tuple(error.get("kinds", ()))
        self.cause: str = error.get("cause", "")
        self.faults: list[dict[str, str]] = error.get("faults", [])
        super().__init__(error.get("message", "the daemon gave no reason"))

    def __str__(self) -> str:
        return str(self.args[0])


def exit_of(error: BaseException) -> Exit | None:
    """The status of a foreseen error; None for one that is a bug."""
    match error:
        case BaseExceptionGroup():
            codes = [exit_of(inner) for inner in error.exceptions]
            known = [code for code in codes if code is not None]
            return max(known) if len(known) == len(codes) else None
        case KeyboardInterrupt():
            return Exit.INTERRUPTED
        case SpecInvalid() | ImageInUse() | Refusal():
            return Exit.MISTAKE
        case ImageFailed(__cause__=OSError() as cause) if isinstance(cause, OF_A_NAMED_FILE):
            return Exit.MISTAKE
        case PullFailed(__cause__=FileNotFoundError()):
            return Exit.MISTAKE
        case HostLacks():
            return Exit.HOST
        case DaemonSaid() if error.cause in {kind.__name__ for kind in OF_A_NAMED_FILE}:
            return Exit.MISTAKE
        case DaemonSaid():
            return _of_kinds(error.kinds)
        case QmpkitError():
            return Exit.MONITOR if _of_the_monitor(error) else Exit.FAILED
        case OSError() if error.errno is not None:
            return Exit.FAILED
    return None


def _of_kinds(kinds: tuple[str, ...]) -> Exit:
    for name, status in (
        ("SpecInvalid", Exit.MISTAKE),
        ("ImageInUse", Exit.MISTAKE),
        ("Refused", Exit.MISTAKE),
        ("HostLacks", Exit.HOST),
    ):
        if name in kinds:
            return status
    return Exit.FAILED


def _of_the_monitor(error: QmpkitError) -> bool:
    # Whose module nobody has loaded is none of these; with asyncio it costs more than all of `ps`.
    if "qmpkit.qmp.errors" not in sys.modules:
        return False
    from qmpkit.qmp.errors import MonitorAbsent, MonitorGarbled, MonitorLost, MonitorSilent

    return isinstance(error, MonitorAbsent | MonitorGarbled | MonitorLost | MonitorSilent)
