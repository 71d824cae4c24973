"""Disks that come and go while the guest runs."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.aio import best_aio, io_uring_works
from qmpkit.host.binary import capabilities_of, find_binary
from qmpkit.host.capabilities import Stamp
from qmpkit.host.check_files import check_disks
from qmpkit.host.encrypted import bases_of, secret_problems
from qmpkit.host.findings import Problem, raise_problems
from qmpkit.host.layered import layered_problems
from qmpkit.host.resolve import with_absolute_paths
from qmpkit.images.prepare import place_disk
from qmpkit.machine.drives import limit_drive
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.disks import disk_of
from qmpkit.operations.block.graph import FDSETS, graph_of, lent_files, nodes_of
from qmpkit.operations.block.layers import making
from qmpkit.operations.hotplug.devices import with_controller
from qmpkit.operations.hotplug.places import additions, changes_between, empty_port
from qmpkit.operations.hotplug.plug import free_fdset, plugging, unplug_parts
from qmpkit.operations.undertaking import undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.addresses import DISK_PORTS
from qmpkit.spec.block import ON_CONTROLLERS, Aio, Disk, disk_node, on_root_port
from qmpkit.spec.check import validate
from qmpkit.spec.device_ids import free_id
from qmpkit.spec.layout import pinned
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import file_node
from qmpkit.spec.parts import Part, names_of

__all__ = ["add_disk", "behind", "remove_disk"]


async def add_disk(machine: Changeable, disk: Disk, fd: int | None) -> Disk:
    """See `Disks.add`."""
    async with machine.changing:
        disk = await _wanted(machine, disk)
        to_make = await trio.to_thread.run_sync(_checked, machine.spec, disk, fd)
        await _have_controller(machine, disk)
        old = pinned(machine.spec)
        disk, new = await _placed(machine, old, disk)
        bases = {}
        if disk.luks is not None:
            bases[disk.id] = await trio.to_thread.run_sync(bases_of, disk)
        parts = additions(old, new, bases)
        fdset = None if fd is None else await free_fdset(machine)
        change = Change(
            what=f"add disk {disk.id!r} ({disk.file})",
            spec=new,
            begun=old,
            files=(disk.file,) if to_make else (),
            coming=(*([] if fdset is None else [f"fdset/{fdset}"]), *names_of(parts)),
        )
        async with undertaking(machine, change) as it, making(machine) as made:

            def is_there() -> None:
                made.keep()
                it.done()

            async def stays() -> None:
                is_there()
                with suppress(CommandRefused):
                    await _limited(machine, disk)

            if to_make:
                made.file(await place_disk(disk))
                await it.made(made.files)
            async with plugging(machine, stuck=stays) as plugged:
                if fdset is not None and fd is not None:
                    await plugged.lend(fdset, fd, disk.file)
                    parts = tuple(_through(part, disk, fdset) for part in parts)
                await plugged.add(*parts)
                await plugged.confirm()
                await _limited(machine, disk)
                plugged.keep()
            is_there()
    return disk


async def _limited(machine: Changeable, disk: Disk) -> None:
    if disk.limits is not None and not disk.is_empty:
        await limit_drive(machine, (await graph_of(machine)).device(disk.id), disk.limits)


async def _wanted(machine: Changeable, disk: Disk) -> Disk:
    """The disk with an id, and paths for ever; SpecInvalid when it makes no sense."""
    if not isinstance(disk, Disk):
        raise SpecInvalid([Fault("disk", f"cannot be {disk!r}")], f"machine {machine.name!r}")
    spec = machine.spec
    if disk.aio == "auto":
        disk = attrs.evolve(disk, aio=await _best_aio(spec, disk))
    (alone,) = with_absolute_paths(MachineSpec(name=spec.name, disks=[disk])).disks
    alone = attrs.evolve(alone, id=disk.id or free_id(spec, "disk", len(spec.disks)))
    draft = attrs.evolve(spec, disks=[*spec.disks, alone])
    validate(draft)
    return draft.disks[-1]


async def _have_controller(machine: Changeable, disk: Disk) -> None:
    if disk.interface in ON_CONTROLLERS and disk.controller is None:
        usb = disk.interface == "usb"
        await with_controller(machine, usb=usb, iothread=disk.iothread)


async def _placed(machine: Changeable, old: MachineSpec, disk: Disk) -> tuple[Disk, MachineSpec]:
    """The disk with its place, and the spec that has it."""
    if on_root_port(disk) and disk.bus is None:
        bus = await empty_port(machine, old, disk.id, DISK_PORTS.prefix, "disk")
        disk = attrs.evolve(disk, bus=bus)
    new = pinned(attrs.evolve(old, disks=[*old.disks, disk]))
    return new.disks[-1], new


async def _best_aio(spec: MachineSpec, disk: Disk) -> Aio:
    binary = await trio.to_thread.run_sync(lambda: Stamp.of(find_binary(spec.qemu, spec.arch)))
    offered = (await capabilities_of(binary)).aio
    ring = await trio.to_thread.run_sync(io_uring_works)
    return best_aio(disk.cache, offered, ring=ring)


def _checked(spec: MachineSpec, disk: Disk, fd: int | None) -> bool:
    """Raise all that stands in the way on this host; whether its image is to be made.  Blocking."""
    whose = f"machine {spec.name!r}, disk {disk.id!r}"
    if fd is None:
        alone = attrs.evolve(spec, disks=[disk])
        problems = [*check_disks(alone), *secret_problems(alone), *layered_problems(alone)]
        raise_problems(problems, whose)
    else:
        raise_problems([Problem(fault) for fault in _fd_faults(disk, fd)], whose)
    return disk.make is not None and not os.path.lexists(disk.file)


def _fd_faults(disk: Disk, fd: int) -> Iterator[Fault]:
    if disk.make is not None:
        yield Fault("make", "what comes as a descriptor is there already", "leave make out")
    try:
        found, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError as error:
        yield Fault("fd", f"{fd} is no open descriptor: {error.strerror}")
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        yield Fault("fd", "it is no file and no block device")
    if not disk.is_readonly and flags & os.O_ACCMODE != os.O_RDWR:
        yield Fault("fd", "it is not open for reading and writing", "readonly = true")
    try:
        named = os.stat(disk.file)  # noqa: PTH116
    except OSError:
        return  # not for us to see
    if (named.st_dev, named.st_ino) != (found.st_dev, found.st_ino):
        yield Fault("fd", f"it is another file than {disk.file!r}, which a restart would open")


def _through(part: Part, disk: Disk, fdset: int) -> Part:
    """The file's node, which opens a set of descriptors in place of the path."""
    if part.id != file_node(disk.id):
        return part
    return attrs.evolve(part, arguments={**(part.arguments or {}), "filename": _path_of(fdset)})


def _path_of(fdset: int) -> str:
    return f"{FDSETS}{fdset}"


async def remove_disk(machine: Changeable, disk_id: str, grace: float) -> Disk:
    """See `Disks.remove`."""
    async with machine.changing:
        old = pinned(machine.spec)
        disk = disk_of(machine, disk_id)
        _refuse_held(machine.spec, disk_id)
        new = attrs.evolve(old, disks=[it for it in old.disks if it.id != disk_id])
        going, _ = changes_between(old, new)
        parts = [*(part for part in going if part.kind == "device")]
        parts += await behind(machine, disk)
        parts += [part for part in going if part.kind == "object"]
        await unplug_parts(machine, f"remove disk {disk_id!r}", new, parts, grace=grace)
    return disk


def _refuse_held(spec: MachineSpec, disk_id: str) -> None:
    points = [point.name for point in spec.snapshots if disk_id in point.disks]
    if points:
        message = f"snapshots hold it: {', '.join(points)}"
        raise SpecInvalid([Fault(disk_id, message, "delete them first")], f"machine {spec.name!r}")


async def behind(machine: Changeable, disk: Disk) -> list[Part]:
    """The nodes of a disk, with all its layers, and the sets of descriptors that they open."""
    graph = await graph_of(machine)
    chain = graph.chain(disk.id) if disk.id in graph.disks else graph.below(disk_node(disk))
    parts = [Part("node", node) for node in nodes_of(chain)]
    files = {layer.file for layer in chain}
    lent = await lent_files(machine)
    return parts + [Part("fdset", str(number)) for number, file in lent.items() if file in files]
