"""What can go wrong in the operations on a machine and while talking to its guest."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from qmpkit.errors import GuestRefused, MachineDied, MachineGone, QmpkitError

if TYPE_CHECKING:
    from qmpkit.operations._protocols import Verdict
    from qmpkit.operations.completed import Completed

__all__ = [
    "AgentRefused",
    "BackupDiffers",
    "ConsoleEnded",
    "GuestCommandFailed",
    "JobFailed",
    "OutputLost",
    "TrayLocked",
    "UnknownKey",
    "end_of",
]


async def end_of(gone: MachineGone, verdict: Verdict | None) -> MachineGone | MachineDied:
    """The error for a channel that has ended: *gone*, or MachineDied when it was a crash."""
    report = None if verdict is None else await verdict()
    if report is None or report.expected:
        gone.report = report
        return gone
    died = MachineDied(report)
    died.__cause__ = gone
    return died


class ConsoleEnded(MachineGone):
    """The console ended, because the machine did, before what was asked could happen.

    `channel` is the console's name, `last_lines` the last that the guest printed.
    """

    def __init__(self, machine: str, channel: str, asked: str, last_lines: str) -> None:
        super().__init__(machine, asked)
        self.channel = channel
        self.last_lines = last_lines
        self.args = (machine, channel, asked, last_lines)

    def __str__(self) -> str:
        said = self.last_lines or "(it printed nothing)"
        why = f": {self.report}" if self.report else ""
        return (
            f"machine {self.machine!r}: {self.channel} ended before {self.asked}{why}. "
            f"Its last lines:\n{said}"
        )


class OutputLost(QmpkitError):
    """A reader fell so far behind that output was dropped before it was read or searched.

    `dropped` bytes are gone for this reader alone; it goes on with the oldest
    byte that is kept, so the call may be repeated by who can live with the gap.
    """

    def __init__(self, machine: str, channel: str, dropped: int, keep: int) -> None:
        self.machine = machine
        self.channel = channel
        self.dropped = dropped
        self.keep = keep
        super().__init__(machine, channel, dropped, keep)

    def __str__(self) -> str:
        return (
            f"machine {self.machine!r}: {self.dropped} bytes of {self.channel} were dropped "
            f"before they were read ({self.keep} bytes are kept). "
            "Cure: read sooner, or keep more"
        )


class AgentRefused(GuestRefused):
    """The guest agent answered with an error: `why` is what it said.

    `error_class` is the protocol's class: "CommandNotFound" also for a command that
    the guest's administrator has disabled, "GenericError" for nearly all else, ""
    when it was qmpkit that refused.
    """

    def __init__(self, machine: str, asked: str, why: str, error_class: str = "") -> None:
        super().__init__(machine, asked, why)
        self.error_class = error_class
        self.args = (machine, asked, why, error_class)


class GuestCommandFailed(GuestRefused):
    """A command run with `check=True` ended with another status than 0; see `completed`.

    `cure`: what helps, where qmpkit knows the command; "" otherwise.
    """

    def __init__(self, machine: str, completed: Completed, cure: str = "") -> None:
        super().__init__(machine, f"to run {completed.argv[0]!r}", completed.ending)
        self.completed = completed
        self.cure = cure
        self.args = (machine, completed, cure)

    def __str__(self) -> str:
        done = self.completed
        said = (done.error_text.strip() or done.text.strip())[-1000:]
        return (
            f"in the guest of machine {self.machine!r}, {shlex.join(done.argv)} ended with "
            f"{done.ending}{': ' if said else ''}{said}{'. Cure: ' if self.cure else ''}{self.cure}"
        )


class TrayLocked(GuestRefused):
    """The guest holds the tray of a CD drive, as it does while it has the CD mounted.

    It was asked to let go, and has not within two seconds.
    """

    def __init__(self, machine: str, asked: str) -> None:
        super().__init__(machine, f"to {asked}", "it has locked the tray")
        self.args = (machine, asked)

    def __str__(self) -> str:
        return f"{super().__str__()}. Cure: unmount the CD in the guest, or use force"


class UnknownKey(QmpkitError, ValueError):
    """A key or character that cannot be pressed; raised before any key is.

    `key` is what was asked for, `hint` what may have been meant.
    """

    def __init__(self, key: str, why: str, hint: str = "") -> None:
        self.key = key
        self.why = why
        self.hint = hint
        super().__init__(key, why, hint)

    def __str__(self) -> str:
        return f"{self.key!r}: {self.why}{f' ({self.hint})' if self.hint else ''}"


class JobFailed(QmpkitError):
    """A job of QEMU's (a merge, a move, a backup) did not succeed; `why` is what QEMU said.

    `job` is its name, `asked` what it was for.  What it would have changed is as it was.
    """

    def __init__(self, machine: str, job: str, asked: str, why: str) -> None:
        self.machine = machine
        self.job = job
        self.asked = asked
        self.why = why
        super().__init__(machine, job, asked, why)

    def __str__(self) -> str:
        cure = next((f". Cure: {cure}" for said, cure in _JOB_CURES if said in self.why), "")
        return f"machine {self.machine!r} could not {self.asked}: {self.why}{cure}"


class BackupDiffers(QmpkitError):
    """A backup was compared with the disk at its moment and shows something else.

    `disk` is the disk's id, `folder` where the backups are, `why` what qemu-img said.  Nothing
    of the point is kept.
    """

    def __init__(self, machine: str, disk: str, folder: str, why: str) -> None:
        self.machine = machine
        self.disk = disk
        self.folder = folder
        self.why = why
        super().__init__(machine, disk, folder, why)

    def __str__(self) -> str:
        return (
            f"machine {self.machine!r}: the backup of disk {self.disk!r} to {self.folder} is not "
            f"what the disk was, and nothing of it is kept: {self.why} Cure: verify the points "
            'before it; if they are well, take a full one (mode="full"), and look at the host\'s '
            "memory and disks (dmesg)"
        )


_JOB_CURES = (
    ("No space left", "free some space there, or choose another place"),
    ("Disk quota exceeded", "free some of the quota, or choose another place"),
    ("Input/output error", "look at the host's disk (dmesg): it could not be read or written"),
)
