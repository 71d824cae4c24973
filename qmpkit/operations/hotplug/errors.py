"""What can go wrong when a device comes or goes while its machine runs."""

from __future__ import annotations

from qmpkit.errors import Fault, GuestRefused, QmpkitError, SpecInvalid

__all__ = ["NoPortLeft", "PlugFailed", "UnplugPending", "UnplugRefused"]


class NoPortLeft(SpecInvalid):
    """Every root port of the machine holds a device; `ports` is how many there are."""

    def __init__(self, machine: str, device: str, ports: int) -> None:
        self.device = device
        self.ports = ports
        why = f"all {ports} hold a device" if ports else "the machine was started with none"
        message = f"no root port is left for {device!r}: {why}"
        first = "remove one, or " if ports else ""
        cure = f"{first}start the machine with more: root_ports = {min(160, max(8, 2 * ports))}"
        super().__init__([Fault("root_ports", message, cure)], f"machine {machine!r}")
        self.args = (machine, device, ports)


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
