"""What can go wrong when a device comes or goes while its machine runs."""

from __future__ import annotations

from qmpkit.errors import Fault, GuestRefused, QmpkitError, SpecInvalid
from qmpkit.spec.addresses import SPARE_PORTS

__all__ = ["NoPortLeft", "PlugFailed", "UnplugPending", "UnplugRefused"]


class NoPortLeft(SpecInvalid):
    """Every root port of the machine holds a device; `ports` is how many there are.

    `spare`: how many of them it was started with for hotplug, `root_ports` of its profile.
    """

    def __init__(self, machine: str, device: str, ports: int, spare: int) -> None:
        self.device = device
        self.ports = ports
        self.spare = spare
        held = "the only one holds" if ports == 1 else f"all {ports} hold"
        why = f"{held} a device" if ports else "the machine was started with none"
        message = f"no root port is left for {device!r}: {why}"
        remove = {0: "", 1: "remove it, or "}.get(ports, "remove one, or ")
        cure = f"{remove}{_more(spare)}"
        super().__init__([Fault("root_ports", message, cure)], f"machine {machine!r}")
        self.args = (machine, device, ports, spare)


def _more(spare: int) -> str:
    most = SPARE_PORTS.size
    if spare < most:
        more = min(most, max(8, 2 * spare))
        return f"start the machine with more: root_ports = {more} in its profile"
    return f"put disks on one controller: {most} spare ports are the most (virtio-scsi)"


class PlugFailed(QmpkitError):
    """QEMU has accepted `device` and does not have it; all is as it was."""

    def __init__(self, machine: str, device: str) -> None:
        self.machine = machine
        self.device = device
        super().__init__(machine, device)

    def __str__(self) -> str:
        return (
            f"QEMU accepted the device {self.device!r} of machine {self.machine!r} and does not "
            "have it. Cure: look at what QEMU says (its stderr), and plug it again"
        )


class UnplugRefused(GuestRefused):
    """The guest answered that it keeps `device`, which is as it was; `why` is what it said."""

    def __init__(self, machine: str, device: str, why: str) -> None:
        self.device = device
        super().__init__(machine, f"to let go of {device!r}", why)
        self.args = (machine, device, why)


class UnplugPending(GuestRefused):
    """The guest has not answered whether it lets go of `device`; remove it again later.

    It paused, has not booted, or has no driver that would answer.  The device and all behind
    it are there until it does.
    """

    def __init__(self, machine: str, device: str, why: str) -> None:
        self.device = device
        super().__init__(machine, f"to let go of {device!r}", why)
        self.args = (machine, device, why)

    def __str__(self) -> str:
        return (
            f"the guest of machine {self.machine!r} has not let go of {self.device!r}: "
            f"{self.why}. Cure: have it run, and remove the device again"
        )
