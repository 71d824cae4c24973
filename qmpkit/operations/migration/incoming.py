"""A QEMU that waits for the guest of another one."""

from __future__ import annotations

from collections.abc import Collection

import attrs
import trio

from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.errors import MigrationFailed, NotArrived
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.operations.migration.storage_there import NewImages
from qmpkit.operations.undertaking import Undertaking
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import UserNic

__all__ = ["Incoming", "generation_of", "start_form"]


class Incoming:
    """A destination: `machine` was started as incoming, to become what `spec` says.

    It takes one guest, and is of no more use after a migration that failed.  `arrived` is set
    when it has all of it; `has_switched`: the guest may run here before that (postcopy).
    `moves`: the disks that go along, into `images`, which were made for them, with `collapse`
    of what is in their bases too.  `on_record`: where that is written down, if it is.
    `cables`: the NICs that have a cable of their own here, and hear nothing until then.
    """

    def __init__(
        self,
        machine: Machine,
        spec: MachineSpec,
        *,
        moves: tuple[DiskMove, ...] = (),
        images: NewImages | None = None,
        collapse: bool = False,
        on_record: Undertaking | None = None,
        cables: Collection[str] = (),
    ) -> None:
        self.machine = machine
        self.spec = spec
        self.moves = moves
        self.images = images or NewImages()
        self.collapse = collapse
        self.on_record = on_record
        self.cables = cables
        self.arrived = trio.Event()
        self.has_switched = False
        self._spent = False

    def must_wait(self) -> None:
        """Raise NotArrived when it was to be filled before, or has ended."""
        if self._spent or self.machine.report is not None:
            raise NotArrived(self.spec.name)

    def has_ended(self) -> MigrationFailed:
        """The error for its end, with what it said last."""
        said = self.machine.child.stderr_tail.strip()
        return MigrationFailed(self.spec.name, "the destination's QEMU has ended", said)

    def keep_images(self) -> None:
        """The guest runs on the new images, or may have: they stay."""
        self.images.keep()
        if self.on_record is not None:
            self.on_record.left = True

    async def discard_images(self) -> None:
        """Its QEMU has ended, and the guest goes on with the old images, before it does.

        Not of one that may have run here: then they stay.
        """
        await self.images.discard()
        on_record = self.on_record
        if on_record is not None and on_record.change.sure and not on_record.left:
            await on_record.give_up()

    def take(self) -> None:
        """It is filled now, once and for all."""
        self.must_wait()
        self._spent = True


def start_form(spec: MachineSpec, *, generation: str | None) -> MachineSpec:
    """What a destination is started as, beside a source that has what can only be had once.

    Its ports of this host are opened when the source has let go of them; its RAM is empty,
    not that of a template.  *generation*: what the guest knows itself by (`vmgenid`), for it
    is no clone.  Pure.
    """
    nics = [
        attrs.evolve(nic, forwards=()) if isinstance(nic, UserNic) else nic for nic in spec.nics
    ]
    memory = spec.memory
    if memory.mem_path is not None and not memory.huge_pages:
        memory = attrs.evolve(memory, mem_path=None)
    vmgenid = spec.vmgenid if generation is None else generation
    return attrs.evolve(spec, nics=nics, memory=memory, vmgenid=vmgenid, resume_from=None)


async def generation_of(source: Machine) -> str | None:
    """What the guest of *source* knows itself by (`query-vm-generation-id`), if it does."""
    if source.spec.vmgenid is None:
        return None
    return str((await source.execute("query-vm-generation-id"))["guid"])
