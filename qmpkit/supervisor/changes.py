"""What a `Supervisor` does to one of its kept machines beside starting and stopping it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager

from qmpkit.operations.block.at_rest import AtRest
from qmpkit.operations.hotplug.unplug import UNPLUG_GRACE
from qmpkit.operations.migration.convergence import Policy
from qmpkit.operations.migration.moving import Migrated
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.storage import SHARED, DiskPlaces
from qmpkit.operations.migration.transfer import Told
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import Nic
from qmpkit.supervisor.keeper import Keeper
from qmpkit.supervisor.moving import move

__all__ = ["Changes"]


class Changes(ABC):
    """The part of a supervisor that changes a machine that it keeps: disks, networks, process."""

    def layers_of(self, name: str) -> MachineSpec | None:
        """A spec with the disks of a machine as they are now, also of one that is forgotten."""
        return self._kept_machines().layers_of(name)

    def at_rest(self, name: str) -> AbstractAsyncContextManager[AtRest]:
        """`async with supervisor.at_rest(name) as machine:` the disks of one that is down.

        As `qmpkit.at_rest`, and its record follows what is done.  It cannot be started
        meanwhile.  Raises SpecInvalid when it is up, or for an unknown name.
        """
        return self._kept_machines().at_rest(name)

    async def join(self, name: str, network: str, *, mac: str | None = None) -> Nic:
        """Plug a NIC into a kept machine that runs, in a network that machines here are in.

        It is there again after a restart, until `leave`.  Raises as `vm.nics.add`, and
        HostLacks for what the network lacks; failed or cancelled, nothing is left.
        """
        keeper = self._kept_machines()
        return await keeper.joining.join(keeper.known(name), network, mac=mac)

    async def leave(self, name: str, nic: str, *, grace: float = UNPLUG_GRACE) -> None:
        """Unplug a NIC as `vm.nics.remove` does, with its place in the network it has joined."""
        keeper = self._kept_machines()
        await keeper.joining.leave(keeper.known(name), nic, grace=grace)

    async def revert(self, name: str, snapshot: str, *, memory: bool = True) -> tuple[str, ...]:
        """Have a kept machine that is down start from a snapshot of its disks the next time.

        With one that has the RAM in a file the guest goes on where it was, unless *memory* is
        false: then it boots.  A start whose machine is not as it was then raises LaunchFailed.

        Each disk that is in it gets a new layer above the snapshot's file.  What the guest has
        written since is in the files that are given back, which stay, and nobody uses any more.

        Raises SpecInvalid when it is up, for an unknown name or snapshot, and for one that
        the images hold with the RAM (start the machine paused, and `vm.snapshots.load` it);
        ImageFailed, JournalFailed.  Failed or cancelled, it starts as it would have before.
        """
        return await self._kept_machines().revert(name, snapshot, memory=memory)

    async def migrate(
        self,
        name: str,
        *,
        qemu: str | os.PathLike[str] | None = None,
        policy: str | Policy = "live",
        options: MigrationOptions | None = None,
        progress: Told | None = None,
        disks: DiskPlaces = SHARED,
        collapse: bool = False,
    ) -> Migrated:
        """Move a kept machine's guest to a new process, of another *qemu* for instance.

        As `VM.migrate`; `Kept.vm` is another one then.  *disks*, *collapse*: those that go along
        into new images, as for `receiving`; its record names them once it runs on them.
        Whoever dies meanwhile, us included, one machine is left, which the next supervisor
        finds; by postcopy it has the rest of the memory come.  A guest that is lost so is started
        again by its policy.  Declared stopped meanwhile, it stays (MigrationFailed) and is stopped;
        when it runs in the new process already the rest is waited for, but by a stop at once.
        Raises SpecInvalid for an unknown name, MachineGone when it is down,
        JournalFailed, HostLacks.
        """
        keeper = self._kept_machines()
        kept = keeper.known(name)
        async with kept.turn:
            return await move(kept, keeper.means, qemu, policy, options, progress, disks, collapse)

    @abstractmethod
    def _kept_machines(self) -> Keeper: ...
