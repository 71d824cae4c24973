"""`receiving(vm)`: a QEMU for the length of a block, for a guest that migrates to it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit._running import log_directory, raise_death, surfacing_death
from qmpkit.errors import LaunchFailed
from qmpkit.host.resolve import resolve
from qmpkit.machine.launch import LaunchOptions, Starter, launched, start_qemu
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.along import planned_moves
from qmpkit.operations.migration.errors import (
    CannotMigrate,
    NotArrived,
    destination_starts,
    no_qemu,
)
from qmpkit.operations.migration.incoming import Incoming, generation_of, start_form
from qmpkit.operations.migration.migrate import check_source
from qmpkit.operations.migration.storage import SHARED, DiskMove, DiskPlaces, with_moves
from qmpkit.operations.migration.storage_there import NewImages, new_images, thread_faults
from qmpkit.operations.tune.live import take_place
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.machine import MachineSpec
from qmpkit.vm import VM

__all__ = ["Destination", "receiving"]

log = logging.getLogger("qmpkit")


class Destination(Incoming):
    """Where a machine migrates to; made by `qmpkit.receiving`, given to `VM.migrate`."""

    def __init__(
        self,
        machine: Machine,
        spec: MachineSpec,
        *,
        logs: Path | None,
        moves: tuple[DiskMove, ...],
        images: NewImages,
        collapse: bool,
    ) -> None:
        super().__init__(machine, spec, moves=moves, images=images, collapse=collapse)
        self._vm = VM(machine, logs=logs)

    @property
    def vm(self) -> VM:
        """The machine that has migrated; NotArrived before it has."""
        if not self.arrived.is_set():
            raise NotArrived(self.spec.name)
        return self._vm


@asynccontextmanager
async def receiving(
    source: VM,
    *,
    qemu: str | os.PathLike[str] | None = None,
    disks: DiskPlaces = SHARED,
    collapse: bool = False,
    logs: str | os.PathLike[str] | None = None,
    options: LaunchOptions | None = None,
    start: Starter = start_qemu,
) -> AsyncIterator[Destination]:
    """Have another QEMU ready for the guest of *source*, on this host and with its disks.

    It is built from `source.spec`, with what was plugged in meanwhile and where that sits.
    *disks*: "shared", they stay where they are; a directory, in which each disk that is written
    to gets a file of its name; or a new file for each disk that goes along, by its id.  Those
    are copied by `source.migrate` while the guest writes; the old images stay as they were in
    that moment, for you to delete.  A disk with a base takes its own layer along, and has the
    same base; *collapse* copies what is in its bases too.  The new images are made at once,
    never over a file, and removed with the block unless the guest has come.
    *qemu*: another binary than `source.spec.qemu`; *logs*, *options* as for `running`, with
    `options.links` for NICs that have no address of their own.  `source.migrate` moves the
    guest; no process outlives the block, so what was moved ends with it.

    Raises CannotMigrate, before anything is started, with all that is in the way; SpecInvalid
    or HostLacks when that QEMU does not have what the machine needs, MigrationFailed when it does
    not start, and, once the guest is here, MachineDied as `running` does.
    """
    options = attrs.evolve(options or LaunchOptions(), incoming=True)
    folder = None
    if logs is not None:
        folder = await trio.to_thread.run_sync(log_directory, Path(logs))
        options = attrs.evolve(options, stderr_log=folder / "stderr.log")
    moves, lacking = await planned_moves(source.machine, disks, collapse=collapse)
    if faults := (*await check_source(source.machine), *lacking):
        raise CannotMigrate(source.name, faults)
    wanted = source.spec if qemu is None else attrs.evolve(source.spec, qemu=qemu)
    wanted = with_moves(wanted, moves)
    generation = await generation_of(source.machine)
    async with AsyncExitStack() as stack:
        images = await stack.enter_async_context(new_images(moves))
        # Its images are in use, and its ports, by the source.
        try:
            resolution = await resolve(start_form(wanted, generation=generation), check=False)
        except LaunchFailed as failed:
            raise CannotMigrate(source.name, [no_qemu(failed)]) from failed
        if faults := (*thread_faults(moves, resolution.capabilities.version),):
            raise CannotMigrate(source.name, faults)
        for warning in resolution.warnings:
            log.warning("machine %r: %s", wanted.name, warning)
        await stack.enter_async_context(shared_spawner())
        with destination_starts(source.name):
            machine = await stack.enter_async_context(launched(resolution, options, start=start))
        await take_place(machine)
        spec = attrs.evolve(resolution.spec, nics=wanted.nics, vmgenid=wanted.vmgenid)
        destination = Destination(
            machine, spec, logs=folder, moves=moves, images=images, collapse=collapse
        )
        async with surfacing_death(machine, since=destination.arrived):
            yield destination
    raise_death(machine, since=destination.arrived)
