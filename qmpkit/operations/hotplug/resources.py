"""What users hold of processors and memory that come and go: `vm.cpus`, `vm.memory`."""

from __future__ import annotations

from collections.abc import Callable

from qmpkit.operations.hotplug import balloon, cpus, growing, memory
from qmpkit.operations.hotplug.balloon import BALLOON_GRACE, GuestMemoryUse
from qmpkit.operations.hotplug.cpus import ONLINE_GRACE, Vcpu
from qmpkit.operations.hotplug.growing import RESIZE_GRACE
from qmpkit.operations.hotplug.memory import MODULE_GRACE
from qmpkit.operations.hotplug.mounted import Asked
from qmpkit.operations.hotplug.unplug import UNPLUG_GRACE
from qmpkit.operations.tune.threads import Tunable
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.peripherals import VirtioMem
from qmpkit.spec.sizes import Size

__all__ = ["Cpus", "GuestMemory"]


class GuestMemory:
    """The memory of one machine beside that of its start, and its balloon."""

    def __init__(self, machine: Tunable) -> None:
        self._machine = machine

    @property
    def dimms(self) -> tuple[Dimm, ...]:
        """The modules that it has, as in `vm.spec.memory.dimms`."""
        return self._machine.spec.memory.dimms

    async def add(self, size: int | str, *, node: int | None = None) -> Dimm:
        """Plug a module of *size* ("1GiB", or bytes: a multiple of 128MiB); Linux sees it in 0.1 s.

        Gives it back as it is in `vm.spec` now, with its id (`dimm0`).  It is made of what the
        RAM is made of (huge pages, host nodes, shared).  *node*: of the guest's NUMA nodes.

        Raises SpecInvalid when no slot or no room is left (`slots` and `maxmem` of a start) or
        the board has none, HostLacks, CommandRefused.  Cancelled as `Disks.add`.
        (`object-add`, `device_add`.)
        """
        return await memory.add_dimm(self._machine, size, node)

    async def remove(self, dimm: str, *, grace: float = MODULE_GRACE) -> Dimm:
        """Have the guest let go of a module, then give its memory back to the host.

        Linux lets go when it can move all that is in it: start it with
        `memhp_default_state=online_movable`.  Raises UnplugRefused when it cannot,
        UnplugPending when it has not within *grace* seconds, and is cancelled as
        `Disks.remove`.  (`device_del`, `object-del`.)
        """
        return await memory.remove_dimm(self._machine, dimm, grace)

    async def resize(
        self, size: int | str, *, device: str | None = None, grace: float = RESIZE_GRACE
    ) -> VirtioMem:
        """Have the guest use *size* of a virtio-mem device, and return when it does.

        *device*: its id, when there are several (`vm.devices.add(VirtioMem(size="4GiB"))`
        plugs one in).  `vm.spec` follows.  Raises SpecInvalid when there is none or it has not
        so much, GuestRefused when the guest stands still or has not followed within *grace*
        seconds.  Failed or cancelled, what was requested before is requested again.
        (`requested-size`, MEMORY_DEVICE_SIZE_CHANGE.)
        """
        return await growing.resize(self._machine, size, device, grace)

    async def balloon_size(self) -> Size:
        """The bytes that the balloon leaves to the guest (`query-balloon`)."""
        return await balloon.balloon_size(self._machine)

    async def balloon(self, size: int | str, *, grace: float = BALLOON_GRACE) -> None:
        """Have the guest come down, or up again, to *size* of memory; returns when it has.

        Not in `vm.spec`: a restart begins with all of it.  Raises SpecInvalid without
        `balloon = true`, for a size that it cannot have, and when its RAM is a private view of
        a file (a copy of a template); GuestRefused when the guest stands still or has not
        followed within *grace* seconds.  Failed or cancelled, it is told to
        come back to what it had.  (`balloon`, BALLOON_CHANGE.)
        """
        await balloon.balloon(self._machine, size, grace)

    async def statistics(self, *, grace: float = 5.0) -> GuestMemoryUse:
        """What the guest tells of its memory, some 1 s after it is asked.

        Raises SpecInvalid without `balloon = true`, GuestRefused when it says nothing for
        *grace* seconds.  (`guest-stats-polling-interval`, put back afterwards.)
        """
        return await balloon.ask_statistics(self._machine, grace)


class Cpus:
    """The processors of one machine, by their numbers: 0 to `maxcpus` - 1."""

    def __init__(self, machine: Tunable, agent: Callable[[], Asked]) -> None:
        self._machine = machine
        self._agent = agent

    async def list(self) -> tuple[Vcpu, ...]:
        """All places for processors, and which hold one.

        (`query-hotpluggable-cpus`, `query-cpus-fast`.)
        """
        return await cpus.list_cpus(self._machine)

    async def add(
        self,
        count: int = 1,
        *,
        socket: int | None = None,
        core: int | None = None,
        thread: int | None = None,
        online: bool = False,
        grace: float = ONLINE_GRACE,
    ) -> tuple[Vcpu, ...]:
        """Plug *count* processors into the lowest empty places, or into those of a socket, core,
        thread; they run where the spec pins them.

        A guest's kernel sees them in some hundredths of a second and mostly leaves them
        offline: with *online* its agent brings up all that are offline (`guest-set-vcpus`), in
        at most *grace* seconds.  `vm.spec` has them in `cpu.added`.

        Raises SpecInvalid when no place is empty (`maxcpus` of a start), AgentSilent before
        anything is done, GuestRefused when the guest does not bring them up: they are plugged
        then.  Failed or cancelled, each is there and in `vm.spec`, or is not in either.
        (`query-hotpluggable-cpus`, `device_add`.)
        """
        asked = {"socket": socket, "core": core, "thread": thread}
        where = {name: number for name, number in asked.items() if number is not None}
        agent = self._agent if online else None
        return await cpus.add_cpus(self._machine, count, where, agent, grace)

    async def remove(self, cpu: str, *, unsafe: bool = False, grace: float = UNPLUG_GRACE) -> None:
        """Have the guest let go of a processor that was added, by its id (`cpu2`).

        Under TCG it is HostLacks: QEMU 7.2 corrupts its heap then and dies at the next plug,
        10.0 after some more.  *unsafe* does it all the same.  *grace*: seconds for the guest's
        answer.  Raises UnplugRefused, UnplugPending, and SpecInvalid for those of the start.
        Cancelled, the guest may let go of it later.  (`device_del`.)
        """
        await cpus.remove_cpu(self._machine, cpu, grace, unsafe=unsafe)
