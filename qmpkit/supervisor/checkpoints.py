"""Checkpoints of a lab: kept machines of one moment, that go back to it together.

Each machine has a snapshot with its RAM; a file says which of them belong together.  It is
written before the first is taken and once all are, so that what was interrupted is known.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.errors import Fault, JournalFailed, QmpkitError, SpecInvalid
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.at_rest import AtRest
from qmpkit.operations.block.deletion import refuse_deletion
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.process.durable import write_durably
from qmpkit.spec.checkpoints import Checkpoint, checkpoint_from_json, checkpoint_to_json
from qmpkit.spec.snapshots import bare_memory_file, snapshot_name_problem
from qmpkit.spec.suggest import among
from qmpkit.supervisor.keeper import Keeper
from qmpkit.supervisor.kept import Kept
from qmpkit.vm import VM

__all__ = ["DELETE", "Checkpoints", "each"]

log = logging.getLogger("qmpkit.supervisor")

DELETE = "delete it (`delete_checkpoint`, qmpkit lab rm)"
"""What helps against a checkpoint that is in the way, or of no use."""

UNDO_GRACE = 120.0
"""Seconds that taking back the snapshots of a checkpoint that failed may take: small merges."""


class Checkpoints:
    """Those of one supervisor; one is taken, gone back to or deleted at a time."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._root = keeper.places.state / "checkpoints"
        self.turn = trio.Lock()
        """Held by whoever does something to one of them."""

    async def all(self) -> tuple[Checkpoint, ...]:
        """Every one on record, the oldest first; SpecInvalid for a file that is none."""
        return await trio.to_thread.run_sync(self._read)

    async def take(self, name: str, machines: Iterable[str] | None, description: str) -> Checkpoint:
        """See `Supervisor.checkpoint`."""
        async with self.turn:
            chosen = await self._chosen(name, machines)
            names = tuple(kept.name for kept in chosen)
            point = Checkpoint(
                name=name, machines=names, time=time.time(), description=description, whole=False
            )
            await self.write(point)
            try:
                began = trio.current_time()
                async with _all_paused(chosen):
                    await each(chosen, lambda kept: self._take_one(kept, name))
                    pause = trio.current_time() - began
                point = attrs.evolve(point, whole=True, pause=round(pause, 3))
                await self.write(point)
            except BaseException:
                with trio.move_on_after(UNDO_GRACE, shield=True):
                    await self._undo(point)
                raise
            return point

    async def _take_one(self, kept: Kept, name: str) -> None:
        vm = _vm(kept)
        bare = all(disk.is_readonly for disk in vm.spec.disks)
        await vm.snapshots.take(name, ram=True, folder=self._root if bare else None)

    async def _undo(self, point: Checkpoint) -> None:
        """Nothing of it is left; what is, is told as not whole."""
        try:
            await self._delete(attrs.evolve(point, whole=False))
        except QmpkitError as error:
            log.warning("of the checkpoint %r something is left: %s", point.name, error)

    async def delete(self, name: str) -> None:
        """See `Supervisor.delete_checkpoint`."""
        async with self.turn:
            point = await self.known(name)
            for kept in self._having(point):  # all before the first: what is merged stays so
                async with self._on(kept) as machine:
                    await refuse_deletion(_changeable(machine), name)
            point = attrs.evolve(point, whole=False)
            await self.write(point)
            await self._delete(point)

    async def _delete(self, point: Checkpoint) -> None:
        for kept in self._having(point):
            async with self._on(kept) as machine:
                await machine.snapshots.delete(point.name)
        for name in point.machines:
            if name not in self._keeper.machines:
                await self._keeper.forget_bare(name, point.name)
        await self.write(point, gone=True)

    def _having(self, point: Checkpoint) -> list[Kept]:
        """Its machines that have their snapshot yet."""
        known = self._keeper.machines
        machines = [known[name] for name in point.machines if name in known]
        return [it for it in machines if any(at.name == point.name for at in it.spec.snapshots)]

    @asynccontextmanager
    async def _on(self, kept: Kept) -> AsyncIterator[VM | AtRest]:
        if kept.vm is not None:
            yield kept.vm
        else:
            async with self._keeper.at_rest(kept.name) as machine:
                yield machine

    async def known(self, name: str) -> Checkpoint:
        """The checkpoint of that name; SpecInvalid when there is none."""
        points = {point.name: point for point in await self.all()}
        if name not in points:
            hint = among(name, points)
            fault = Fault("name", f"there is no checkpoint {name!r}", hint)
            raise SpecInvalid([fault], self._source)
        return points[name]

    @property
    def _source(self) -> str:
        return f"supervisor {self._keeper.name!r}"

    async def _chosen(self, name: str, machines: Iterable[str] | None) -> list[Kept]:
        faults = [Fault("name", problem)] if (problem := snapshot_name_problem(name)) else []
        if not problem and any(point.name == name for point in await self.all()):
            faults.append(Fault("name", f"there is a checkpoint {name!r} already", DELETE))
        known = self._keeper.machines
        up = sorted(it.name for it in known.values() if it.vm is not None)
        names = up if machines is None else list(machines)
        chosen = [self._keeper.known(it) for it in dict.fromkeys(names)]
        faults += [
            Fault(kept.name, f"it is {kept.state}: there is no memory", "start it, or leave it out")
            for kept in chosen
            if kept.vm is None
        ]
        faults += [
            Fault(kept.name, f"it has a snapshot {name!r} already", "choose another name")
            for kept in chosen
            if any(it.name == name for it in kept.spec.snapshots)
        ]
        if not chosen:
            faults.append(Fault("machines", "none is up"))
        if faults:
            raise SpecInvalid(faults, self._source)
        return chosen

    def _read(self) -> tuple[Checkpoint, ...]:
        if not self._root.is_dir():
            return ()
        found = [
            checkpoint_from_json(path.read_bytes(), str(path)) for path in self._root.glob("*.json")
        ]
        return tuple(sorted(found, key=lambda point: point.time))

    async def write(self, point: Checkpoint, *, gone: bool = False) -> None:
        """Write down what has become of it, safe on disk.  JournalFailed."""
        path = self._root / f"{point.name}.json"
        left = self._left_of(point) if gone else set()

        def write() -> None:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            for file in left:
                file.unlink(missing_ok=True)
            write_durably(path, None if gone else checkpoint_to_json(point))

        try:
            await trio.to_thread.run_sync(write)
        except OSError as error:
            raise JournalFailed(str(path), error.strerror or str(error)) from error

    def _left_of(self, point: Checkpoint) -> set[Path]:
        """The RAM here of machines that were forgotten since, which nobody goes back to any more.

        One that has come again has its snapshot no more.  What was renamed is in use.
        """
        files = {self._root / bare_memory_file(name, point.name) for name in point.machines}
        specs = [kept.spec for kept in self._keeper.machines.values()]
        used = {file for spec in specs for it in spec.snapshots for file in it.beside}
        used |= {spec.resume_from for spec in specs if spec.resume_from is not None}
        return files - {Path(file) for file in used}


def _changeable(machine: VM | AtRest) -> Changeable:
    return machine.machine if isinstance(machine, VM) else machine


def _vm(kept: Kept) -> VM:
    if kept.vm is None:
        fault = Fault("", f"it is {kept.state}: it has ended meanwhile")
        raise SpecInvalid([fault], f"machine {kept.name!r}")
    return kept.vm


@asynccontextmanager
async def _all_paused(machines: Sequence[Kept]) -> AsyncIterator[None]:
    """All guests stand still within, from the same moment on; those that ran run again after."""
    ran = [kept for kept in machines if kept.state == "running"]
    try:
        await each(ran, lambda kept: _vm(kept).pause())
        yield
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True):
            async with trio.open_nursery() as nursery:
                for kept in ran:
                    nursery.start_soon(_resume, kept)


async def _resume(kept: Kept) -> None:
    """The others go on whatever becomes of one; its end is seen by who attends to it."""
    try:
        if kept.vm is not None and kept.vm.report is None:
            await kept.vm.resume()
    except QmpkitError as error:
        log.warning("machine %r does not go on: %s", kept.name, error)


async def each(machines: Iterable[Kept], do: Callable[[Kept], Awaitable[object]]) -> None:
    """All at the same time; the failure of one gives up the others, and is raised."""
    try:
        async with trio.open_nursery() as nursery:
            for kept in machines:
                nursery.start_soon(do, kept, name=f"{do} of {kept.name}")
    except BaseExceptionGroup as group:
        raise_collapsed(group)
