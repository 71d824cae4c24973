"""What users hold of hotplug: `vm.disks.add`, `vm.nics`, `vm.devices`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block import fronts
from qmpkit.operations.hotplug import devices, disks, nics
from qmpkit.operations.hotplug.mounted import Asked, refuse_mounted
from qmpkit.operations.hotplug.nics import Cable
from qmpkit.operations.hotplug.places import RootPorts, root_ports
from qmpkit.operations.hotplug.unplug import UNPLUG_GRACE
from qmpkit.operations.tune.threads import Tunable
from qmpkit.spec.block import Disk
from qmpkit.spec.network import Nic
from qmpkit.spec.peripherals import Device

__all__ = ["Devices", "Disks", "Nics"]


class Disks(fronts.Disks):
    """The disks of one machine, by the ids that they have in its spec (`disk0`)."""

    __doc__ = fronts.Disks.__doc__

    def __init__(self, machine: Changeable, agent: Callable[[], Asked]) -> None:
        super().__init__(machine)
        self._agent = agent

    async def add(self, disk: Disk, *, fd: int | None = None) -> Disk:
        """Plug a disk into the machine; its guest sees it in some hundredths of a second.

        Gives it back as it is in `vm.spec` now: with an id, an absolute path and a place.
        `make` works as at a start: an image that is missing is made, and removed again when
        the rest fails.  *fd*: a descriptor of the image, for a QEMU that may not open it
        (`add-fd`); it stays the caller's, and `disk.file` is what a restart opens.

        Raises NoPortLeft when every root port holds a device (`root_ports`), SpecInvalid and
        HostLacks with all that is wrong before anything is done, CommandRefused.  Failed or
        cancelled, nothing is left; a device that QEMU had accepted when it was cancelled is
        unplugged, and stays, in `vm.spec` too, if the guest does not let go of it.
        (`blockdev-add`, `device_add`.)
        """
        return await disks.add_disk(self._machine, disk, fd)

    async def remove(
        self, disk: str, *, unmounted: bool = False, grace: float = UNPLUG_GRACE
    ) -> Disk:
        """Have the guest let go of a disk, and close its image, which stays where it is.

        Linux lets go of one that is mounted, too, and what it had not written is lost: with
        *unmounted* its agent is asked first, and one that is mounted is UnplugRefused
        (AgentSilent without an agent).  *grace*: seconds for the guest's answer.

        Raises UnplugRefused, UnplugPending (the guest stands still, has not booted, or is
        silent: nothing has changed, remove it again later), SpecInvalid when it has no such
        disk, a snapshot holds it, or it is on a bus that gives nothing back.  Cancelled, the
        guest may let go of it later; `vm.spec` says so then.  (`device_del`, `blockdev-del`.)
        """
        if unmounted:
            await refuse_mounted(self._machine, self._agent(), disk)
        return await disks.remove_disk(self._machine, disk, grace)


class Nics:
    """The NICs of one machine, by the ids that they have in its spec (`nic0`)."""

    def __init__(self, machine: Tunable) -> None:
        self._machine = machine

    async def add(self, nic: Nic, *, fd: Cable | None = None) -> Nic:
        """Plug a NIC into the machine; its guest sees it in some hundredths of a second.

        Gives it back as it is in `vm.spec` now.  *fd*: a tap device, or a connected socket,
        for one that has no address of its own; it stays the caller's, and a start of
        `vm.spec` wants another (`LaunchOptions.links`), so a kept machine takes none.
        Raises and is cancelled as `Disks.add`.  (`getfd`, `netdev_add`, `device_add`.)
        """
        return await nics.add_nic(self._machine, nic, fd)

    async def remove(self, nic: str, *, grace: float = UNPLUG_GRACE) -> Nic:
        """Have the guest let go of a NIC, then close what is behind it.

        *grace*: seconds for the guest's answer.  Raises and is cancelled as `Disks.remove`.
        (`device_del`, `netdev_del`.)
        """
        return await nics.remove_nic(self._machine, nic, grace)

    async def change(
        self, nic: Nic, *, fd: Cable | None = None, grace: float = UNPLUG_GRACE
    ) -> Nic:
        """Put another back end behind the NIC of that id, whose MAC and place stay.

        QEMU (7.2 to 10.0) connects no living NIC with another back end: the guest sees the
        card go and come.  When the new one cannot be had, the old one is plugged in again,
        unless it came with an *fd*.  Raises as `add` and `remove`.
        """
        return await nics.change_nic(self._machine, nic, fd, grace)

    async def set_link(self, nic: str, *, up: bool) -> None:
        """Pull the NIC's cable, or put it in again (`set_link`); a restart has it so, too."""
        await nics.set_link(self._machine, nic, up)


class Devices:
    """All other devices of one machine, by the ids that they have in its spec (`rng1`)."""

    def __init__(self, machine: devices.Sharing) -> None:
        self._machine = machine

    @property
    def lost(self) -> Mapping[str, str]:
        """Shares (`path=`) whose virtiofsd has ended, by id, and how: their guest hangs in them.

        Told in the log, and as an event ("share-lost") of a kept machine.
        """
        return self._machine.shares.lost

    def ports(self) -> RootPorts:
        """The machine's root ports: which hold what, and how many are left for hotplug."""
        return root_ports(self._machine.spec)

    async def add(self, device: Device) -> Device:
        """Plug a device into the machine: `Rng`, `Vsock`, `UsbTablet`, `Share`, `VirtioMem` …

        Gives it back as it is in `vm.spec` now.  A USB device without a controller to sit on
        gets one, which stays.  What it needs of this host is looked at first: HostLacks.
        Raises and is cancelled as `Disks.add`.
        """
        return await devices.add_device(self._machine, device)

    async def remove(self, device: str, *, grace: float = UNPLUG_GRACE) -> Device:
        """Have the guest let go of a device, then take away what is behind it.

        Not of those that sit on the board: `rng = true` of a spec, a controller that disks
        had at the start.  A `VirtioMem` goes when it is resized to 0, and not from QEMU 7.2, which
        is HostLacks.  *grace*: seconds for the guest's answer.  Raises and is cancelled as
        `Disks.remove`.
        """
        return await devices.remove_device(self._machine, device, grace)
