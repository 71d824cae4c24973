"""What can go wrong while a machine moves to another QEMU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qmpkit.errors import Fault, LaunchFailed, QmpkitError, SpecInvalid

__all__ = ["CannotMigrate", "MigrationFailed", "MigrationLost", "MigrationUnknown"]
__all__ += ["NotArrived", "destination_starts", "no_qemu"]


class CannotMigrate(SpecInvalid):
    """The machine cannot move there: `faults` has everything that is in the way.

    Raised before anything is done to it.
    """

    def __init__(self, machine: str, faults: Sequence[Fault]) -> None:
        super().__init__(faults, f"machine {machine!r} cannot migrate")
        self.machine = machine
        self.args = (machine, faults)


class _Stopped(QmpkitError):
    """What stopped a migration, and the last words of its destination."""

    def __init__(self, machine: str, why: str, said: str = "") -> None:
        self.machine = machine
        self.why = why
        self.said = said
        super().__init__(machine, why, said)

    @property
    def told(self) -> str:
        """Both in one sentence."""
        return f"{self.why}; the destination said: {self.said}" if self.said else self.why


class MigrationFailed(_Stopped):
    """The machine has not moved: it is where it was, as it was; `why` is what stopped it.

    `said`: the last that the destination's QEMU had to say, "" when it said nothing.
    `stopped`: its owner had it stopped meanwhile, so it goes down where it was.
    """

    def __init__(self, machine: str, why: str, said: str = "", stopped: bool = False) -> None:
        super().__init__(machine, why, said)
        self.stopped = stopped
        self.args = (machine, why, said, stopped)

    def __str__(self) -> str:
        if self.stopped:
            return (
                f"machine {self.machine!r} did not migrate and is stopped: {self.told}. Cure: "
                "start it again, then migrate it"
            )
        return f"machine {self.machine!r} did not migrate and is as it was: {self.told}"


class MigrationUnknown(QmpkitError):
    """Nobody can tell whether the guest has run at the destination, so neither runs on.

    The source stands still, its images let go of.  `why` is what was lost.  `place`: where the
    other supervisor is that may be asked again, "" when there is none.  `cure`: what is to be
    done about it, "" for what is usual.
    """

    def __init__(self, machine: str, why: str, place: str = "", cure: str = "") -> None:
        self.machine = machine
        self.why = why
        self.place = place
        self.cure = cure
        super().__init__(machine, why, place, cure)

    def __str__(self) -> str:
        said = f"machine {self.machine!r} stands still: it may have run at the destination"
        if self.cure:
            return f"{said}, {self.place}: {self.why}. Cure: {self.cure}"
        if self.place:
            return (
                f"{said}, {self.place}: {self.why}. Cure: `qmpkit migrate {self.machine} --settle` "
                "asks there what has come of it (`Supervisor.settle`)"
            )
        return (
            f"{said} for a "
            f"moment, {self.why}. Cure: end it and start it again, as after a power cut; to have "
            "it run on here (`resume`) is safe only if the destination wrote nothing"
        )


class MigrationLost(_Stopped):
    """The guest is lost: part of its memory was at each end, and that is not all in one place.

    Only a migration by postcopy ends so, after its guest had begun to run at the destination.
    Both QEMUs have ended; its disks are as after a power cut.  `why` is what happened, `said`
    the last that the destination's QEMU had to say, "" when it said nothing.  `place`: where
    another supervisor keeps the machine, whose policy is asked; "" when it is where it was.
    """

    def __init__(self, machine: str, why: str, said: str = "", place: str = "") -> None:
        super().__init__(machine, why, said)
        self.place = place
        self.args = (machine, why, said, place)

    def __str__(self) -> str:
        where = f" at {self.place}, which keeps it now," if self.place else ","
        return (
            f"the guest of machine {self.machine!r} is lost, part of its memory was at each end: "
            f"{self.told}. Cure: start it again{where} as after a power cut"
        )


class NotArrived(QmpkitError):
    """A destination has no machine yet, or none any more: nothing has migrated to it."""

    def __init__(self, machine: str) -> None:
        self.machine = machine
        super().__init__(machine)

    def __str__(self) -> str:
        return (
            f"machine {self.machine!r} is not at this destination. Cure: `await "
            "vm.migrate(destination)` first; after one that failed, make another destination"
        )


@contextmanager
def destination_starts(machine: str) -> Iterator[None]:
    """Of a destination's QEMU that does not get ready, say so: the machine itself is as it was.

    Raises MigrationFailed in place of its LaunchFailed.
    """
    try:
        yield
    except LaunchFailed as failed:
        cure = f". Cure: {failed.cure}" if failed.cure else ""
        why = f"its destination did not start, {failed.how}{cure}"
        raise MigrationFailed(machine, why, failed.stderr_tail.strip()) from failed


def no_qemu(failed: LaunchFailed) -> Fault:
    """Of a program that was asked what it can do, and is no QEMU."""
    said = failed.stderr_tail.strip().partition("\n")[0]
    message = f"{failed.argv[0]!r} is no QEMU: {said or failed.how}"
    return Fault("qemu", message, "name a qemu-system-… binary")
