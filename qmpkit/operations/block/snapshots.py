"""Snapshots: points in time that a machine's disks can go back to.

External ones put a layer above each disk, all in one transaction; the layer below is the
point, and is only read from then on.  Internal ones are held by the images themselves,
together with the machine's RAM.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.chain import MAX_CHAIN
from qmpkit.host.layered import mark_layered
from qmpkit.images.encrypting import encrypting
from qmpkit.images.new import place_layer
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.graph import Graph, Layer, graph_of, node_above
from qmpkit.operations.block.layers import Made, layer_blockdevs, making, with_disks
from qmpkit.operations.block.memory import place_file, standing_still
from qmpkit.operations.block.variables import variables_copy
from qmpkit.operations.jobs import Progress
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.stillness import runs
from qmpkit.operations.undertaking import Undertaking, undertaking
from qmpkit.qmp.errors import CommandRefused, MonitorSilent
from qmpkit.spec.block import Disk
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.snapshots import (
    Snapshot,
    bare_memory_file,
    layer_file,
    memory_file,
    snapshot_name_problem,
    tag_of,
)
from qmpkit.spec.suggest import among

__all__ = ["Freeze", "known_snapshot", "new_name_faults", "take", "writable_disks"]

Freeze = Callable[[], AbstractAsyncContextManager[object]]
"""Makes a block within which the guest's file systems stand still."""


@attrs.frozen
class _Step:
    """One disk of a snapshot: the layer that it has, and the one that it gets."""

    below: Layer
    disk: Disk


async def take(
    machine: Changeable,
    name: str,
    *,
    disks: Sequence[str] | None = None,
    folder: Path | None = None,
    description: str = "",
    freeze: Freeze | None = None,
    ram: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """An external snapshot; see `Snapshots.take`."""
    async with machine.changing:
        if ram:
            _refuse_ram(machine, disks, freeze)
        graph = await graph_of(machine)
        steps, snapshot = _plan(machine.spec, graph, name, disks, folder, description, ram=ram)
        spec = attrs.evolve(
            with_disks(machine.spec, (step.disk for step in steps)),
            snapshots=(*machine.spec.snapshots, snapshot),
            snapshot=name,
        )
        change = Change(
            what=f"take the snapshot {name!r}",
            spec=spec,
            begun=machine.spec,
            # An empty layer shows what is below it: a machine that dies now may start with it.
            sure=True,
            nodes=tuple(str(n) for s in steps for n in (s.disk.node, f"{s.disk.node}-file")),
            files=tuple(step.disk.file for step in steps),
            frozen=freeze is not None,
        )
        frozen = freeze() if freeze else nullcontext()
        if not snapshot.beside:
            await _carry_out(machine, change, steps, frozen)
            return snapshot
        change = attrs.evolve(
            change,
            sure=False,  # not before what is beside the layers is whole
            memory=snapshot.memory or "",
            variables=snapshot.variables or "",
            halted=await runs(machine),
        )
        await _carry_out_still(machine, change, steps, frozen, progress)
        return known_snapshot(machine.spec, name)


def _refuse_ram(machine: Changeable, disks: Sequence[str] | None, freeze: Freeze | None) -> None:
    faults = []
    if machine.is_down:
        faults.append(Fault("ram", "it is down: there is no memory", "leave ram out"))
    if disks is not None:
        hint = "leave disks out: the memory fits all of them"
        faults.append(Fault("disks", "a snapshot with RAM is of all that it can write to", hint))
    if freeze is not None:
        hint = "leave freeze out"
        faults.append(Fault("freeze", "the memory has what is not yet on the disks", hint))
    if faults:
        raise SpecInvalid(faults, f"machine {machine.name!r}")


async def _carry_out_still(
    machine: Changeable,
    change: Change,
    steps: Sequence[_Step],
    frozen: AbstractAsyncContextManager[object],
    progress: Progress | None,
) -> None:
    """The guest stands still until its RAM is written, and gets its layers in that pause."""
    async with undertaking(machine, change) as it, making(machine) as made:
        await _layers_made(made, steps)
        for file in filter(None, (change.memory, change.variables)):
            made.file(await place_file(file))
        await it.made(made.files)
        async with frozen, standing_still(machine, it, progress):
            await it.make_sure()
            await _switched(machine, steps, it, made)


async def _carry_out(
    machine: Changeable,
    change: Change,
    steps: Sequence[_Step],
    frozen: AbstractAsyncContextManager[object],
) -> None:
    async with undertaking(machine, change) as it, making(machine) as made:
        await _layers_made(made, steps)
        await it.made(made.files)
        async with frozen:
            await _switched(machine, steps, it, made)


async def _layers_made(made: Made, steps: Sequence[_Step]) -> None:
    for step in steps:
        base, new = step.below, step.disk
        how = await encrypting(new.luks)
        made.file(await place_layer(new.file, base.file, base.format, base.size, **how))
        await trio.to_thread.run_sync(mark_layered, Path(base.file), Path(new.file))
        await made.nodes(*layer_blockdevs(new))


async def _switched(
    machine: Changeable, steps: Sequence[_Step], it: Undertaking, made: Made
) -> None:
    try:
        await _switch(machine, steps)
    except CommandRefused:
        raise
    except BaseException:
        # Perhaps it was done, and the guest's next writes are in the new layers.
        made.keep()
        it.unknown()
        raise
    made.keep()
    it.done()


async def _switch(machine: Changeable, steps: Sequence[_Step]) -> None:
    """The moment of the snapshot: a cancellation strikes before it or after."""
    actions = [
        {
            "type": "blockdev-snapshot",
            "data": {"node": step.below.node, "overlay": step.disk.node},
        }
        for step in steps
    ]
    with trio.move_on_after(STEP_GRACE, shield=True):
        if actions:
            await machine.execute("transaction", {"actions": actions})
        return
    raise MonitorSilent(machine.name, STEP_GRACE)


def _plan(
    spec: MachineSpec,
    graph: Graph,
    name: str,
    wanted: Sequence[str] | None,
    folder: Path | None,
    description: str,
    *,
    ram: bool,
) -> tuple[list[_Step], Snapshot]:
    faults = [*new_name_faults(spec, name)]
    # Without a disk there is the RAM alone, if it is said where that is to be.
    bare = ram and folder is not None and all(disk.is_readonly for disk in spec.disks)
    chosen = [] if bare else writable_disks(spec, wanted, faults)
    steps: list[_Step] = []
    taken: set[str] = set()
    for disk in chosen if not snapshot_name_problem(name) else ():
        where = f"disks.{disk.id}"
        if disk.driver != "file" and folder is None:
            hint = "say in which folder its layer is to be"
            faults.append(Fault(where, f"{disk.file} is a block device of the host", hint))
            continue
        step = _step(spec, graph, disk, name, folder, taken)
        if len(graph.chain(disk.id)) >= MAX_CHAIN:
            faults.append(Fault(where, f"it has {MAX_CHAIN} layers", "delete snapshots first"))
        if os.path.lexists(step.disk.file) or step.disk.file in {it.disk.file for it in steps}:
            hint = "remove it, or choose another name or folder"
            faults.append(Fault("name", f"{step.disk.file!r} is there already", hint))
        taken.add(str(step.disk.node))
        steps.append(step)
    memory = _memory_file(steps[0].disk, name) if ram and steps else None
    if bare and folder is not None:
        memory = str(folder.absolute() / bare_memory_file(spec.name, name))
    variables = variables_copy(spec, name, folder) if steps else None
    for file in (memory, variables):
        if file is not None and os.path.lexists(file):
            faults.append(Fault("name", f"{file!r} is there already", "remove it"))
    if faults:
        raise SpecInvalid(faults, f"machine {spec.name!r}")
    snapshot = Snapshot(
        name=name,
        time=time.time(),
        memory=memory,
        variables=variables,
        parent=spec.snapshot,
        disks={step.disk.id: step.below.file for step in steps},
        formats={step.disk.id: step.below.format for step in steps},
        description=description,
    )
    return steps, snapshot


def _memory_file(disk: Disk, name: str) -> str:
    """Beside the layer of the first disk."""
    return str(Path(disk.file).with_name(Path(memory_file(disk.origin or disk.file, name)).name))


def _step(
    spec: MachineSpec,
    graph: Graph,
    disk: Disk,
    name: str,
    folder: Path | None,
    taken: set[str],
) -> _Step:
    below = graph.chain(disk.id)[0]
    # By the first file's name, and where the disk is now, which may have been moved.
    called = Path(layer_file(disk.origin or disk.file, name)).name
    file = str((folder or Path(disk.file).parent).absolute() / called)
    node = node_above(disk, below, {*graph.names, *taken})
    new = attrs.evolve(
        disk,
        file=file,
        format="qcow2",
        node=node,
        driver="file",
        make=None,
        origin=disk.origin or disk.file,
    )
    return _Step(below, new)


def new_name_faults(spec: MachineSpec, name: str) -> Iterator[Fault]:
    """What is wrong with the name of a snapshot that is to be made."""
    if problem := snapshot_name_problem(name):
        yield Fault("name", problem)
    elif any(snapshot.name == name for snapshot in spec.snapshots):
        yield Fault("name", f"there is a snapshot {name!r} already", "choose another, or delete it")


def writable_disks(
    spec: MachineSpec, wanted: Sequence[str] | None, faults: list[Fault]
) -> list[Disk]:
    """The disks of these ids, default all that the guest can write to; what is wrong with them."""
    by_id = {disk.id: disk for disk in spec.disks}
    if wanted is None:
        chosen = [disk for disk in spec.disks if not disk.is_readonly]
        if not chosen:
            faults.append(Fault("disks", "it has no disk that it can write to"))
        return chosen
    if not wanted:
        faults.append(Fault("disks", "none is named", "leave it out for all that it can write to"))
    for name in wanted:
        if name not in by_id:
            hint = among(name, by_id)
            faults.append(Fault("disks", f"it has no disk {name!r}", hint))
        elif by_id[name].is_readonly:
            faults.append(Fault("disks", f"{name!r} is only read, so it never changes"))
    return [by_id[name] for name in dict.fromkeys(wanted) if name in by_id]


def known_snapshot(spec: MachineSpec, name: str) -> Snapshot:
    """The snapshot of that name; SpecInvalid when there is none."""
    known: Mapping[str, Snapshot] = {snapshot.name: snapshot for snapshot in spec.snapshots}
    if name not in known:
        fault = Fault("name", f"there is no snapshot {name!r}", among(name, known))
        raise SpecInvalid([fault], f"machine {spec.name!r}")
    return known[name]


async def rename(machine: Changeable, name: str, to: str) -> None:
    """Give a snapshot another name; see `Snapshots.rename`."""
    async with machine.changing:
        point = known_snapshot(machine.spec, name)
        if faults := list(new_name_faults(machine.spec, to)):
            raise SpecInvalid(faults, f"machine {machine.name!r}")
        tag = tag_of(point) if point.kind == "internal" else None
        tags = {name: None if tag == to else tag}
        names = {name: to}
        points = [
            attrs.evolve(
                it,
                name=names.get(it.name, it.name),
                tag=tags.get(it.name, it.tag),
                parent=names.get(it.parent or "", it.parent),
            )
            for it in machine.spec.snapshots
        ]
        at = names.get(machine.spec.snapshot or "", machine.spec.snapshot)
        done = attrs.evolve(machine.spec, snapshots=points, snapshot=at)
        what = f"rename the snapshot {name!r}"
        change = Change(what=what, spec=done, begun=machine.spec, sure=True)
        async with undertaking(machine, change) as it:
            it.done()


async def sizes_of(points: Sequence[Snapshot]) -> dict[str, int]:
    """Bytes that the files of each external snapshot take on the host."""
    return await trio.to_thread.run_sync(_sizes_of, points)


def _sizes_of(points: Sequence[Snapshot]) -> dict[str, int]:
    sizes = {}
    for point in points:
        if point.kind == "external":
            files = [*point.disks.values(), *point.beside]
            sizes[point.name] = sum(_size(Path(file)) for file in files)
    return sizes


def _size(file: Path) -> int:
    try:
        return file.stat().st_blocks * 512
    except OSError:
        return 0
