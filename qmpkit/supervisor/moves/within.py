"""A kept machine's move to another process of the same supervisor.

The process that it moves to, its heir, is on record before it outlives us, and is started with
a directory of sockets of its own.  Until it is told to run the machine is the old process;
afterwards it is the heir, which its task then connects to as to one that it has found again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import attrs
import trio

from qmpkit.errors import BinaryMissing, Fault, LaunchFailed, MachineGone
from qmpkit.host.resolve import Resolution, resolve
from qmpkit.machine.keep import Home, KeptStart, begun
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration.along import planned_moves
from qmpkit.operations.migration.convergence import Policy, Round
from qmpkit.operations.migration.errors import (
    CannotMigrate,
    MigrationFailed,
    MigrationLost,
    MigrationUnknown,
    destination_starts,
    no_qemu,
)
from qmpkit.operations.migration.incoming import Incoming, generation_of, start_form
from qmpkit.operations.migration.local_end import LocalEnd
from qmpkit.operations.migration.migrate import check_source, in_the_way, migrate_held
from qmpkit.operations.migration.moving import Migrated
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.storage import DiskMove, DiskPlaces, with_moves
from qmpkit.operations.migration.storage_there import thread_faults
from qmpkit.operations.migration.transfer import Told
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.tune.live import take_place
from qmpkit.process.places import second_of, who_is_at
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.life import Means
from qmpkit.supervisor.moves.cables import cables_of, faults_within, vacated
from qmpkit.supervisor.moves.calling_off import called_off_by_stop
from qmpkit.supervisor.moves.recorded_disks import images_on_record
from qmpkit.supervisor.moves.rest_there import note_loss
from qmpkit.supervisor.record import Heir
from qmpkit.vm import VM

__all__ = ["faults_of_move", "move"]


async def move(
    kept: Kept,
    means: Means,
    qemu: str | os.PathLike[str] | None,
    policy: str | Policy,
    options: MigrationOptions | None,
    told: Told | None,
    disks: DiskPlaces,
    collapse: bool,
) -> Migrated:
    """See `Supervisor.migrate`."""
    vm = kept.vm
    if vm is None or not kept.tended:
        raise MachineGone(kept.name, "migrating", kept.report)
    old, new = kept.home, _other_home(kept, means)
    kept.is_moving = True
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(vm.machine.changing.moving("another QEMU"))
            moves, lacking = await planned_moves(vm.machine, disks, collapse=collapse)
            await _check(kept, vm, lacking)
            cables = cables_of(kept.record)
            on_record = images_on_record(vm.machine, moves)
            images, it = await stack.enter_async_context(on_record)
            resolution, spec = await _form(kept, vm, qemu, moves)
            start, machine = await _begun(stack, kept, new, means, resolution)
            heir = Heir(
                identity=start.child.identity,
                sockets=str(new.sockets),
                argv=start.argv,
                facts=resolution.facts,
                spec=spec,
            )
            incoming = Incoming(
                machine,
                spec,
                moves=moves,
                images=images,
                collapse=collapse,
                on_record=it,
                cables=cables,
            )
            try:
                await _put_on_record(kept, means, start, heir)
                with called_off_by_stop(
                    kept,
                    has_arrived=incoming.arrived.is_set,
                    at_once=partial(_kill_ahead, incoming),
                ):
                    took = await migrate_held(
                        vm.machine,
                        LocalEnd(incoming),
                        policy=policy,
                        options=options,
                        told=partial(_tell, kept, told),
                        lost_ports=partial(kept.tell, "ports-lost"),
                    )
            finally:
                if incoming.arrived.is_set():  # cancelled a moment later, it is there all the same
                    _inherit(kept, heir, new)
                with trio.move_on_after(STEP_GRACE, shield=True):
                    await _settled(kept, means, machine)
    except MigrationLost as lost:
        await note_loss(kept, means, vm.machine, str(lost))
        raise
    except MigrationUnknown as unknown:
        kept.tell("unknown", str(unknown))
        vm.machine.child.kill()  # its policy starts it again, as after a power cut
        raise
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await vacated(kept, means, new if kept.home is old else old)
        kept.is_moving = False
        kept.notify()
    await kept.until(lambda: kept.vm not in (None, vm) or not kept.tended or kept.state in _MUTE)
    return took


_MUTE = ("silent", "unreachable")


async def faults_of_move(
    kept: Kept, qemu: str | os.PathLike[str] | None, disks: DiskPlaces, *, collapse: bool
) -> tuple[Fault, ...]:
    """All that is in the way of its moving here, but for the processor; nothing is started."""
    if kept.vm is None or not kept.tended:
        raise MachineGone(kept.name, "migrating", kept.report)
    cables = cables_of(kept.record)
    found = await in_the_way(kept.vm.machine, qemu, disks, collapse=collapse, cables=cables)
    return (*found, *faults_within(kept.record))


def _kill_ahead(incoming: Incoming) -> None:
    """End a process that has the guest already, but not all of it: so the guest is lost."""
    if incoming.has_switched and not incoming.arrived.is_set():
        incoming.machine.child.kill()


def _tell(kept: Kept, told: Told | None, now: Round) -> None:
    if now.phase != "precopy":
        kept.explain("migrating", "its guest runs in its new process, and its memory follows")
    if told is not None:
        told(now)


async def _check(kept: Kept, vm: VM, lacking: Sequence[Fault]) -> None:
    found = await check_source(vm.machine, cables_of(kept.record))
    if faults := [*found, *lacking, *faults_within(kept.record)]:
        raise CannotMigrate(kept.name, faults)


async def _form(
    kept: Kept, vm: VM, qemu: str | os.PathLike[str] | None, moves: Sequence[DiskMove]
) -> tuple[Resolution, MachineSpec]:
    """What its heir is started as, and what it is then."""
    wanted = kept.spec if qemu is None else attrs.evolve(kept.spec, qemu=qemu)
    wanted = with_moves(wanted, moves)
    form = start_form(wanted, generation=await generation_of(vm.machine))
    try:
        resolution = await resolve(form, check=False)  # its images and ports are in use, by itself
    except LaunchFailed as failed:
        raise CannotMigrate(kept.name, [no_qemu(failed)]) from failed
    except BinaryMissing as missing:
        if qemu is None:
            raise
        raise CannotMigrate(kept.name, [Fault("qemu", missing.what, missing.cure)]) from missing
    if faults := (*thread_faults(moves, resolution.capabilities.version),):
        raise CannotMigrate(kept.name, faults)
    return resolution, attrs.evolve(resolution.spec, nics=wanted.nics, vmgenid=wanted.vmgenid)


def _other_home(kept: Kept, means: Means) -> Home:
    """Sockets for two processes of one machine at a time; its logs are the same."""
    second = second_of(kept.name)
    free = means.home(second if kept.member == kept.name else kept.name)
    return Home(free.sockets, kept.home.logs)


async def _begun(
    stack: AsyncExitStack, kept: Kept, home: Home, means: Means, resolution: Resolution
) -> tuple[KeptStart, Machine]:
    """A process that waits for the guest, beside the one that has it, with cables of its own."""
    options = attrs.evolve(means.options, incoming=True)
    member, joined = who_is_at(home.sockets, kept.name), kept.record.joined
    await means.networks.make(member, joined)
    with destination_starts(resolution.spec.name):
        async with means.networks.plugged(resolution.spec, joined, member) as plugged:
            resolution = attrs.evolve(resolution, spec=plugged.spec)
            starting = means.ground.start(
                resolution,
                home,
                plugged.links,
                trio.lowlevel.checkpoint,
                incoming=True,
                silent=cables_of(kept.record),
            )
            start = await stack.enter_async_context(starting)
        machine = await stack.enter_async_context(begun(resolution, start, home, options))
    await take_place(machine)
    return start, machine


async def _put_on_record(kept: Kept, means: Means, start: KeptStart, heir: Heir) -> None:
    """From here on it outlives us, and whoever supervises next knows of it."""
    kept.note(heir=heir)
    if not await kept.write(means.journal):
        assert kept.not_durable is not None
        raise kept.not_durable
    if not await start.child.keep():
        raise MigrationFailed(kept.name, "the destination's QEMU has ended")


def _inherit(kept: Kept, heir: Heir, home: Home) -> None:
    kept.home = home
    kept.note(**attrs.asdict(heir, recurse=False), heir=None, change=None, phase="up")


async def _settled(kept: Kept, means: Means, machine: Machine) -> None:
    """Write down what came of it; an heir that has not inherited is no more by then."""
    if kept.record.heir is not None:
        await machine.kill()
        kept.note(heir=None)
    await kept.write(means.journal)
