"""What a `Supervisor` does with saved machines, and with checkpoints of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from qmpkit.machine.state_forms import Form
from qmpkit.operations.jobs import Progress
from qmpkit.operations.saved.saving import Saving
from qmpkit.spec.checkpoints import Checkpoint
from qmpkit.spec.saved import SavedMachine
from qmpkit.supervisor.checkpoints import Checkpoints
from qmpkit.supervisor.drain import Drained, Told, drain
from qmpkit.supervisor.keeper import Keeper
from qmpkit.supervisor.rewinding import rewind

__all__ = ["Saves"]


class Saves(ABC):
    """The part of a supervisor that saves the machines that it keeps, alone and together."""

    _lab: Checkpoints | None = None

    async def save(
        self, name: str, *, ram: Form = "plain", progress: Progress | None = None
    ) -> SavedMachine:
        """Save a kept machine that is up beside its record, and end it; it is declared stopped.

        Its guest goes on where it was when it is declared running the next time, also after a
        reboot of the host; its disks stay where they are, and nobody may write to them
        meanwhile.  Such a start raises SpecInvalid when somebody has, or LaunchFailed when
        QEMU does not take the state: `discard_saved` has it boot.  *ram*, *progress* and
        what is raised: as of `vm.save`; SpecInvalid, too, when it is down, and JournalFailed.
        Failed or cancelled, it goes on; from the moment on that its record says that it is
        saved, it is, whoever dies.
        """
        keeper = self._kept_machines()
        kept = keeper.known(name)
        async with kept.turn:
            found = await keeper.shelf.save(kept, Saving(ram=ram, progress=progress))
            await kept.until(lambda: not kept.tended or kept.refusal is not None)
            if kept.refusal is not None:
                raise kept.refusal
            return found

    async def save_kept(
        self,
        names: Iterable[str] | None = None,
        *,
        ram: Form = "plain",
        told: Told = lambda name, done, total: None,
    ) -> tuple[Drained, ...]:
        """Save kept machines (default: all that are up), the last to start first.

        Gives how each went: one that cannot be saved goes on, and keeps up nobody.  *told* is
        called as each is down.  Raises SpecInvalid for an unknown name.
        """
        keeper = self._kept_machines()
        up = [name for name, kept in keeper.machines.items() if kept.vm is not None]
        wanted = [keeper.known(name).name for name in (up if names is None else names)]

        async def save(name: str, _: float | None) -> None:
            await self.save(name, ram=ram)

        return await drain(
            keeper.machines, wanted, save, grace=None, deadline=float("inf"), told=told
        )

    def saved_in(self, name: str) -> Path | None:
        """The folder of what a kept machine goes on from, which is discarded as it is forgotten.

        None when it is not saved, or goes on from a snapshot: that stays.  SpecInvalid for an
        unknown name.
        """
        keeper = self._kept_machines()
        return keeper.shelf.folder_of(keeper.known(name).spec)

    async def discard_saved(self, name: str) -> None:
        """Have a kept machine that was saved boot when it is started, without its RAM.

        As after a power cut: what its guest had not yet written is lost.  Raises SpecInvalid
        when it is up, not saved or unknown, JournalFailed.
        """
        keeper = self._kept_machines()
        kept = keeper.known(name)
        async with kept.turn:
            await keeper.shelf.discard(kept)

    async def checkpoint(
        self, name: str, machines: Iterable[str] | None = None, *, description: str = ""
    ) -> Checkpoint:
        """Remember kept machines as they are at this moment, all at the same one, to go back to.

        *machines*: default all that are up.  They stand still together while each gets a
        snapshot *name* with its RAM (as of `vm.snapshots.take(ram=True)`), then go on; of
        one without disks the RAM is kept in the state directory.  Connections between them
        outlive a `rewind`, for nothing has happened at the other end either.

        All or none: when one fails, or this is cancelled, the snapshots of the others are
        deleted.  What a death leaves is told by `checkpoints` (`whole` is false) and can be
        deleted.  Raises SpecInvalid with all that is wrong, and what taking a snapshot does;
        several in a group.
        """
        return await self._checkpoints().take(name, machines, description)

    async def rewind(self, name: str) -> Checkpoint:
        """Have all machines of a checkpoint as they were then, and go on together.

        What they have done since is lost, with the layers it is in.  Those that are up are
        saved before, so that a failure, or a cancellation, before all stand at the
        checkpoint has every machine go on where it was.  They run then, but for those that
        are declared paused.  After a death in the middle (`rewinding`) do it once more.

        Raises SpecInvalid with all that is wrong (a machine that is forgotten or has lost its
        snapshot), LaunchFailed, HostLacks, ImageFailed, JournalFailed; several in a group.
        """
        keeper = self._kept_machines()
        return await rewind(keeper, self._checkpoints(), name, self.save)

    async def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Those that there are, the oldest first."""
        return await self._checkpoints().all()

    async def delete_checkpoint(self, name: str) -> None:
        """Forget a checkpoint: the snapshot of each machine is merged, its data stay.

        One that is forgotten keeps the snapshot of its disks, and has it when it comes again.

        Raises SpecInvalid when there is none, or a later one needs it: then nothing has changed.
        When it fails after that, or is cancelled, what was not done is done by another call.
        """
        await self._checkpoints().delete(name)

    def _checkpoints(self) -> Checkpoints:
        keeper = self._kept_machines()
        if self._lab is None:
            self._lab = Checkpoints(keeper)
        return self._lab

    @abstractmethod
    def _kept_machines(self) -> Keeper: ...
