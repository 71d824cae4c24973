"""A change of what a machine is started from: said before, done, and settled after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import attrs
import trio

from qmpkit.errors import JournalFailed, SpecInvalid
from qmpkit.images.drafts import Placed
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.layers import INODE, remove_files, remove_nodes
from qmpkit.operations.jobs import discard_job
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.spec.machine import MachineSpec

__all__ = ["Undertaking", "undertaking"]


class Undertaking:
    """One change that is under way; `undertaking` makes it.

    `left`: what is on record stands.  `held`: its job holds the guest's writes back until
    the record says that it comes to nothing.
    """

    def __init__(self, machine: Changeable, change: Change) -> None:
        self.change = change
        self.left = False
        self.held = False
        self._machine = machine

    @property
    def is_done(self) -> bool:
        """Whether the machine's spec is what was intended."""
        return self._machine.spec is self.change.spec

    def done(self) -> None:
        """It is done: this is what a restart builds from now on."""
        self._machine.spec = self.change.spec

    def unknown(self) -> None:
        """QEMU has not answered whether it is done: what is on record stays, to find out by.

        Only for what is sure: its spec is the right one in either case.
        """
        self.done()
        self.left = True

    async def make_sure(self) -> None:
        """Write down that it is as good as done; `JournalFailed` when that is not possible."""
        self.change = attrs.evolve(self.change, sure=True)
        await self._machine.ledger.intend(self.change)

    async def give_up(self) -> bool:
        """Write down that it is not done, before that is made so; whether it is safe on disk."""
        return await self._machine.ledger.settle(self.change.begun)

    def learned(self, spec: MachineSpec) -> None:
        """What is intended, with what only QEMU knows, now that it is there."""
        self.change = attrs.evolve(self.change, spec=spec)

    async def made(self, placed: Sequence[Placed]) -> None:
        """Write down which files are ours: another one at their places is not to be removed."""
        inodes = tuple(it.stamp[INODE] for it in placed)
        self.change = attrs.evolve(self.change, inodes=inodes)
        await self._machine.ledger.intend(self.change)

    def paused_for(self, seconds: float) -> None:
        """The guest stood still for so long: the snapshot that is made says it."""
        spec = self.change.spec
        points = [
            attrs.evolve(it, pause=round(seconds, 3)) if it.name == spec.snapshot else it
            for it in spec.snapshots
        ]
        self.change = attrs.evolve(self.change, spec=attrs.evolve(spec, snapshots=points))

    async def _settle(self) -> None:
        if self.is_done and self.change.obsolete:
            with suppress(JournalFailed):  # what stands there then leads to the same end
                await self._remove_obsolete()
        if await self._machine.ledger.settle(self._machine.spec) and self.held:
            with suppress(*LOST):
                await discard_job(self._machine, self.change.job)
                await remove_nodes(self._machine, self.change.nodes)

    async def _remove_obsolete(self) -> None:
        """Not before the record can do without them, and not after it has forgotten them."""
        done = self.change.spec
        what, obsolete = self.change.what, self.change.obsolete
        rest = Change(what=what, spec=done, begun=done, sure=True, obsolete=obsolete)
        await self._machine.ledger.intend(rest)
        await remove_files(self._machine, rest.obsolete)


@asynccontextmanager
async def undertaking(machine: Changeable, change: Change) -> AsyncIterator[Undertaking]:
    """Put *change* on record, and what came of it when the block ends, however it does."""
    it = Undertaking(machine, change)
    begun = False
    try:
        # Cancelled here, it may be written all the same, so it is settled in any case.
        await machine.ledger.intend(change)
        machine.spec, begun = change.begun, True
        yield it
    except (JournalFailed, SpecInvalid):
        it.left = it.left or not begun  # nothing is written, or another change stands there
        raise
    except LOST:
        it.left = True  # QEMU's end tells no more; what is on record is found out by the images
        raise
    finally:
        if not it.left:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await it._settle()
