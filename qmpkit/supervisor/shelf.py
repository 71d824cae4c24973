"""Kept machines that are saved: their RAM beside their record, which says so in one moment.

Before that moment the machine runs, or goes on running; after it, it is down, or about to be,
and starts with its RAM the next time.  Whoever dies in between leaves one of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, JournalFailed, SpecInvalid
from qmpkit.operations.saved.saving import Saving, saved
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.process.places import discard
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.saved import MEMORY, SavedMachine
from qmpkit.supervisor.alter import down
from qmpkit.supervisor.journal import Journal
from qmpkit.supervisor.kept import Kept

__all__ = ["Shelf"]


class Shelf:
    """Where the saved ones of a supervisor's *machines* are: a folder of its name each."""

    def __init__(self, root: Path, machines: Mapping[str, Kept], journal: Journal) -> None:
        self._root = root
        self._machines = machines
        self._journal = journal

    def folder_of(self, spec: MachineSpec) -> Path | None:
        """Where a machine is saved that goes on from here the next time.  Pure."""
        if spec.resume_from is None:
            return None
        folder = Path(spec.resume_from).parent
        return folder if folder.parent == self._root else None

    async def save(self, kept: Kept, how: Saving) -> SavedMachine:
        """Save one that is up, and declare it stopped; its task ends it then."""
        if kept.vm is None:
            hint = "it can be saved while it runs, or is paused"
            raise SpecInvalid([Fault("", f"it is {kept.state}", hint)], f"machine {kept.name!r}")
        folder, machine = self._root / kept.name, kept.vm.machine
        await trio.to_thread.run_sync(_cleared, folder)
        async with saved(machine, folder, how) as (it, found):
            await self._declare(kept, str(folder / MEMORY))
            it.left = True  # what is on record stands, and is more than the change
            kept.grace, kept.refusal = 0.0, None
            kept.declarations += 1
            kept.notify()
        return found

    async def _declare(self, kept: Kept, memory: str) -> None:
        """The moment: written down that it is stopped, and starts with its RAM."""
        before = kept.record
        spec = attrs.evolve(before.spec, resume_from=memory)
        kept.note(declared="stopped", spec=spec, change=None)
        written = False
        with trio.move_on_after(STEP_GRACE, shield=True):
            written = await kept.write(self._journal)
        if written:
            return
        kept.note(declared=before.declared, spec=before.spec, change=before.change)
        self._journal.post(kept.record)  # should the other one be on its way yet
        raise kept.not_durable or JournalFailed(str(self._root), "the disk gives no answer")

    def refuse_another(self, kept: Kept) -> None:
        """Raise SpecInvalid when it is saved: its RAM is of no use to another spec."""
        if self.folder_of(kept.spec) is not None:
            hint = "start it as it was, or discard that first (`discard_saved`, qmpkit discard)"
            fault = Fault("", "it is saved, and what it was saved with fits no other spec", hint)
            raise SpecInvalid([fault], f"machine {kept.name!r}")

    async def discard(self, kept: Kept) -> None:
        """Have one that is down boot the next time, without the RAM that it was saved with."""
        await down(kept)
        folder, memory = self.folder_of(kept.spec), kept.spec.resume_from
        if memory is None:
            fault = Fault("", "it is not saved: it boots when it is started")
            raise SpecInvalid([fault], f"machine {kept.name!r}")
        kept.note(spec=attrs.evolve(kept.spec, resume_from=None))
        if not await kept.write(self._journal):
            kept.note(spec=attrs.evolve(kept.spec, resume_from=memory))
            assert kept.not_durable is not None
            raise kept.not_durable
        await self._remove(folder)
        kept.enter("gone", "what it was saved with is discarded")

    async def clear(self, kept: Kept) -> None:
        """It is forgotten."""
        await self._remove(self.folder_of(kept.spec))

    async def sweep(self) -> None:
        """Remove what no machine goes on from: its supervisor died before or after."""
        needed = {self.folder_of(kept.spec) for kept in self._machines.values()}

        def work() -> None:
            for folder in self._root.iterdir() if self._root.is_dir() else ():
                if folder not in needed:
                    discard(folder)

        await trio.to_thread.run_sync(work)

    async def _remove(self, folder: Path | None) -> None:
        if folder is not None:
            await trio.to_thread.run_sync(discard, folder)


def _cleared(folder: Path) -> None:
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    discard(folder)  # of a save before, from which it has gone on
