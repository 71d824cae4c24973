"""One exception tree, sorted by whose fault it is.

===================  ==========================================================
the caller's         `SpecInvalid`, `ImageInUse`, `MachineGone`, `MachineMoving`,
                     `EventsLost`, `SupervisorRunning`
the host's           `HostLacks` (`KvmUnavailable`, `BinaryMissing`, `JournalFailed`,
                     `JournalNewer`)
QEMU's               `LaunchFailed`, `MachineDied`, `ImageFailed`, and in
                     `qmpkit.qmp.errors` `CommandRefused` and the `Monitor…` errors
the guest's          `GuestRefused` (`AgentSilent`)
a publisher's        `PullFailed` (`CertificateWrong`, `ChecksumWrong`, `SignatureWrong`,
                       `ImageRefused`)
===================  ==========================================================

Every message names the machine, what was asked, what QEMU said and, where one
is known, the cure.  Match on the class and its attributes, never on the text.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from qmpkit.machine.report import ExitReport

__all__ = [
    "QmpkitError",
    "Fault",
    "SpecInvalid",
    "HostLacks",
    "KvmUnavailable",
    "BinaryMissing",
    "LaunchFailed",
    "MachineGone",
    "MachineMoving",
    "MachineDied",
    "GuestRefused",
    "AgentSilent",
    "ImageFailed",
    "ImageInUse",
    "PullFailed",
    "CertificateWrong",
    "ChecksumWrong",
    "SignatureWrong",
    "ImageRefused",
    "JournalFailed",
    "JournalNewer",
    "SupervisorRunning",
]


class QmpkitError(Exception):
    """Root of everything qmpkit raises on purpose."""


@attrs.frozen
class Fault:
    """One thing wrong with an input: where it stands, what is wrong, how to mend it."""

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        cure = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{cure}"


def cause_of(error: BaseException) -> str:
    """*error* as the cause of a machine's state: a start's without QEMU's command."""
    return f"it did not start: {error.why}" if isinstance(error, LaunchFailed) else str(error)


class SpecInvalid(QmpkitError):
    """What the caller asked for cannot be built; raised before anything is started.

    `faults` holds every fault found, not only the first; `source` names the file
    or the machine they were found in.
    """

    def __init__(self, faults: Sequence[Fault], source: str = "") -> None:
        self.faults = tuple(faults)
        self.source = source
        super().__init__(faults, source)

    def __str__(self) -> str:
        prefix = f"{self.source}: " if self.source else ""
        if len(self.faults) == 1:
            return f"{prefix}{self.faults[0]}"
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        return f"{prefix}{len(self.faults)} faults:\n{lines}"


class HostLacks(QmpkitError):
    """This host does not offer what was asked; `cure` says what would change that.

    `source` names the machine that asked for it, when it was one.
    """

    def __init__(self, what: str, cure: str = "") -> None:
        self.what = what
        self.cure = cure
        self.source = ""
        super().__init__(what, cure)

    def __str__(self) -> str:
        prefix = f"{self.source}: " if self.source else ""
        cure = f". Cure: {self.cure}" if self.cure else ""
        return f"{prefix}{self.what}{cure}"


class KvmUnavailable(HostLacks):
    """`accel = "kvm"` was asked for and KVM cannot be had."""


class BinaryMissing(HostLacks):
    """A program qmpkit runs (`qemu-system-…`, `qemu-img`) is not installed."""


class JournalFailed(HostLacks):
    """What was to be remembered could not be written safely; `path` is where.

    What the journal held before still stands there.
    """

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        cure = "free some space there, make it writable, or name another in QMPKIT_STATE_DIR"
        super().__init__(f"cannot write {path} safely: {why}", cure)
        self.args = (path, why)


class JournalNewer(HostLacks):
    """A later qmpkit has written this record, and this one does not know what it says."""

    def __init__(self, path: str, schema: int) -> None:
        self.path = path
        self.schema = schema
        super().__init__(f"{path} was written by a newer qmpkit (schema {schema})", "update qmpkit")
        self.args = (path, schema)


class SupervisorRunning(QmpkitError):
    """Another supervisor has this directory; `pid` is its process, None when it did not say."""

    def __init__(self, name: str, directory: str, pid: int | None) -> None:
        self.name = name
        self.directory = directory
        self.pid = pid
        super().__init__(name, directory, pid)

    def __str__(self) -> str:
        who = "another process" if self.pid is None else f"process {self.pid}"
        return (
            f"the supervisor {self.name!r} ({self.directory}) is already run by {who}. "
            "Cure: ask that one, end it, or choose another name"
        )


class LaunchFailed(QmpkitError):
    """QEMU ended, or never greeted, before it was ready to take commands.

    `argv` is the exact command, `status` how it ended (e.g. "exit status 1",
    None when it had to be killed), `stderr_tail` QEMU's last lines.
    """

    def __init__(
        self,
        machine: str,
        argv: Sequence[str],
        status: str | None,
        stderr_tail: str,
        cure: str = "",
    ) -> None:
        self.machine = machine
        self.argv = tuple(argv)
        self.status = status
        self.stderr_tail = stderr_tail
        self.cure = cure
        super().__init__(machine, self.argv, status, stderr_tail, cure)

    @property
    def how(self) -> str:
        """In words what its QEMU did instead."""
        return f"QEMU ended with {self.status}" if self.status else "QEMU did not get ready"

    @property
    def why(self) -> str:
        """What its QEMU did and said, and a cure: all but the machine's name and the command."""
        cure = f"\nCure: {self.cure}" if self.cure else ""
        return f"{self.how}.\n{self.stderr_tail.strip() or '(it printed nothing)'}{cure}"

    @property
    def brief(self) -> str:
        """The message without the command, which is a screenful."""
        return f"machine {self.machine!r} did not start: {self.why}"

    def __str__(self) -> str:
        return f"{self.brief}\nCommand: {shlex.join(self.argv)}"


class MachineGone(QmpkitError):
    """The machine has ended in an orderly way, so it cannot be asked for anything.

    `asked` is what is not possible any more: a command's name, "reaching the state running".
    """

    def __init__(self, machine: str, asked: str, report: ExitReport | None = None) -> None:
        self.machine = machine
        self.asked = asked
        self.report = report
        super().__init__(machine, asked, report)

    def __str__(self) -> str:
        why = f": {self.report}" if self.report else ""
        return f"machine {self.machine!r} has ended, {self.asked} is not possible{why}"


class MachineMoving(QmpkitError):
    """The machine moves to another QEMU, or is about to, so it is not changed meanwhile.

    `place` is where to: "another QEMU", a supervisor's address.
    """

    def __init__(self, machine: str, place: str) -> None:
        self.machine = machine
        self.place = place
        super().__init__(machine, place)

    def __str__(self) -> str:
        return (
            f"machine {self.machine!r} is moving to {self.place}, and neither changed nor moved "
            "elsewhere meanwhile. Cure: wait until it is there, or cancel its move"
        )


class MachineDied(QmpkitError):
    """QEMU ended without being asked to: it crashed, or somebody killed it."""

    def __init__(self, report: ExitReport) -> None:
        self.report = report
        super().__init__(report)

    def __str__(self) -> str:
        return f"machine {self.report.machine!r} died: {self.report}"


class GuestRefused(QmpkitError):
    """The guest's software did not do what it was asked (a powerdown, a command)."""

    def __init__(self, machine: str, asked: str, why: str) -> None:
        self.machine = machine
        self.asked = asked
        self.why = why
        super().__init__(machine, asked, why)

    def __str__(self) -> str:
        return f"the guest of machine {self.machine!r} refused {self.asked}: {self.why}"


class AgentSilent(GuestRefused):
    """The guest agent is not running, or not (yet) answering."""


class ImageFailed(QmpkitError):
    """qemu-img could not do what was asked; `stderr` is what it said.

    `source` names the machine that the image is for, when it was one.
    """

    def __init__(self, path: str, asked: str, stderr: str, cure: str = "") -> None:
        self.path = path
        self.asked = asked
        self.stderr = stderr
        self.cure = cure
        self.source = ""
        super().__init__(path, asked, stderr, cure)

    def __str__(self) -> str:
        prefix = f"{self.source}: " if self.source else ""
        cure = f" Cure: {self.cure}" if self.cure else ""
        return f"{prefix}cannot {self.asked} {self.path!r}: {self.stderr.strip()}.{cure}"


class ImageInUse(ImageFailed):
    """Another process holds the image open."""


class PullFailed(QmpkitError):
    """An image could not be brought into the store, which is as it was.

    `source` is where it was to come from, `why` what was in the way.
    """

    def __init__(self, source: str, why: str, cure: str = "") -> None:
        self.source = source
        self.why = why
        self.cure = cure
        super().__init__(source, why, cure)

    def __str__(self) -> str:
        cure = f". Cure: {self.cure}" if self.cure else ""
        return f"cannot pull {self.source!r}: {self.why}{cure}"


class CertificateWrong(PullFailed):
    """The server is not who it says: its certificate is not trusted, not valid or another's."""


class ChecksumWrong(PullFailed):
    """What came is not what its publisher's checksum says."""


class SignatureWrong(PullFailed):
    """The checksums are not signed by a key of the keyring."""


class ImageRefused(PullFailed):
    """What came is no image that others may be built on: it names other files, or is none."""
