"""Jobs that change a disk's layers while its guest writes: merge, flatten, move.

A merge of the layer that is written to, and a move, end in a change of place: the job waits
as "pending" with both places alike and the guest's writes held back.  What a restart would
build is written down in that moment, so that it is right whoever dies before or after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, NoReturn

import attrs
import trio

from qmpkit.errors import Fault, JournalFailed, SpecInvalid
from qmpkit.host.chain import walk_chain
from qmpkit.host.layered import mark_layered
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.graph import Layer, graph_of, nodes_of
from qmpkit.operations.block.layers import remove_nodes, with_disks
from qmpkit.operations.block.saved_memory import refuse_saved
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.jobs import Job, Progress, follow, free_job_id, job
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.undertaking import Undertaking, undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.block import Disk
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.snapshots import Snapshot

__all__ = ["change_place", "delete_point", "deleted_from", "place_of", "without_point"]


async def change_place(
    machine: Changeable,
    command: str,
    arguments: Mapping[str, Any],
    it: Undertaking,
    *,
    keep: Callable[[], object] = lambda: None,
    progress: Progress | None = None,
) -> None:
    """Run a job that ends by putting another node in the place of a disk's.

    *keep* is called when what was made for it is needed.  Cancelled or failed before that
    moment, the machine's layers are as they were.
    """
    name, asked = it.change.job, it.change.what
    started = job(machine, command, arguments, id=name, asked=asked, finalize=False)
    try:
        async with started as running:
            await follow(running, progress)
            await running.reached("ready")
            await running.complete()
            await running.reached("pending")
            with trio.move_on_after(STEP_GRACE, shield=True) as scope:
                await it.make_sure()
                await _finalize(running, it, keep)
            if scope.cancelled_caught and not it.left:
                await _too_slow(it)
    finally:
        if it.is_done and not it.left:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await remove_nodes(machine, it.change.leaving)


async def _too_slow(it: Undertaking) -> NoReturn:
    """The journal has not answered while the guest's writes are held back: that is to end."""
    with trio.move_on_after(STEP_GRACE, shield=True):
        await it.give_up()
    raise JournalFailed("the journal", f"it has not answered within {STEP_GRACE:g} s")


async def _finalize(running: Job, it: Undertaking, keep: Callable[[], object]) -> None:
    try:
        await running.finalize()
        await running.ended()
    except (CommandRefused, JobFailed):
        # Before the job is taken off, which lets the guest write to the old place again.
        if not await it.give_up():
            running.left = it.held = True
        raise
    except BaseException:
        # Perhaps it was done, and the guest's next writes are in the new place.
        keep()
        it.unknown()
        running.left = True
        raise
    keep()
    it.done()


async def delete_point(
    machine: Changeable,
    disk_id: str,
    point: Snapshot,
    *,
    speed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Have *point* no more on one disk: its layer gets what is above it, or goes.

    The point is not whole any more from the beginning on; the machine's data always is.
    Raises SpecInvalid when another snapshot, of another branch, needs it.
    """
    chain, place = await place_of(machine, disk_id, point)
    if place is None:
        await _drop(machine, disk_id, point)
    else:
        await _merge(machine, disk_id, point, chain, place, speed, progress)


async def place_of(
    machine: Changeable, disk_id: str, point: Snapshot
) -> tuple[tuple[Layer, ...], int | None]:
    """The layers of a disk, and which of them is the point's; None when it is not among them.

    SpecInvalid when that one is not to go.
    """
    chain = (await graph_of(machine)).chain(disk_id)
    file = point.disks[disk_id]
    await _refuse_branches(machine.spec, disk_id, point, {layer.file for layer in chain})
    place = next((n for n, layer in enumerate(chain) if layer.file == file), None)
    if place == 0:
        message = f"disk {disk_id!r} writes to {file}, which was to stay as it is"
        raise SpecInvalid([Fault(point.name, message)], f"machine {machine.name!r}")
    if place is None:
        await _refuse_users(machine, point, [file])
    else:
        upper = chain[place - 1]
        refuse_saved(machine.spec, point.name)
        _refuse_inner_points(machine.spec, disk_id, upper)
        await _refuse_users(machine, point, [upper.file, file])
    return chain, place


async def _drop(machine: Changeable, disk_id: str, point: Snapshot) -> None:
    """The machine is on another branch, or was moved or flattened since: only its file goes."""
    begun = _with_point(machine.spec, attrs.evolve(point, whole=False))
    change = Change(
        what=f"remove {point.disks[disk_id]}",
        spec=without_point(begun, disk_id, point),
        begun=begun,
        sure=True,
        obsolete=(point.disks[disk_id], *_left_of(point, disk_id)),
    )
    async with undertaking(machine, change) as it:
        it.done()


def _left_of(point: Snapshot, disk_id: str) -> Sequence[str]:
    """What goes with the last disk of a point."""
    return point.beside if point.disks.keys() == {disk_id} else ()


async def _merge(
    machine: Changeable,
    disk_id: str,
    point: Snapshot,
    chain: tuple[Layer, ...],
    place: int,
    speed: int,
    progress: Progress | None,
) -> None:
    """Merge into the point's layer the one above it (`block-commit`)."""
    upper, base = chain[place - 1], chain[place]
    begun = _with_point(machine.spec, attrs.evolve(point, whole=False))
    change = Change(
        what=f"merge {upper.file} into {base.file}",
        spec=deleted_from(begun, disk_id, point, upper, base, active=place == 1),
        begun=begun,
        job=await free_job_id(machine, "merge", disk_id),
        leaving=nodes_of([upper]),
        obsolete=(upper.file, *_left_of(point, disk_id)),
    )
    words: dict[str, Any] = {"device": chain[0].node, "base-node": base.node, "speed": speed}
    before = machine.spec
    async with undertaking(machine, change) as it:
        try:
            if place == 1:
                await change_place(machine, "block-commit", words, it, progress=progress)
                return
            words |= {"top-node": upper.node, "backing-file": _recorded(base, chain[place - 2])}
            await _merge_between(machine, disk_id, words, it, progress)
        except CommandRefused as refused:
            if refused.command == "block-commit":  # nothing was begun: the point is whole
                machine.spec = before
            raise
        above = Path(chain[place - 2].file)
        await trio.to_thread.run_sync(mark_layered, Path(base.file), above)


async def _merge_between(
    machine: Changeable,
    disk_id: str,
    words: Mapping[str, Any],
    it: Undertaking,
    progress: Progress | None,
) -> None:
    """Below the layer that is written to: no place changes, and no moment is to be caught."""
    name, asked = it.change.job, it.change.what
    try:
        async with job(machine, "block-commit", words, id=name, asked=asked) as running:
            await follow(running, progress)
            await running.ended()
    finally:
        # A job that was cancelled may have come to its end all the same.
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
            layers = (await graph_of(machine)).chain(disk_id)
            if not {layer.file for layer in layers} & {*it.change.obsolete}:
                it.done()
                await remove_nodes(machine, it.change.leaving)


async def _refuse_branches(
    spec: MachineSpec, disk_id: str, point: Snapshot, live: set[str]
) -> None:
    """Other branches see what is in the point's layer, and would see it change."""
    others = [
        (known.name, Path(file), known.formats.get(disk_id))
        for known in spec.snapshots
        if known.name != point.name and known.kind == "external"
        if (file := known.disks.get(disk_id)) is not None and file not in live
    ]
    needing = await trio.to_thread.run_sync(_above, others, Path(point.disks[disk_id]))
    if needing:
        message = f"its file {point.disks[disk_id]} is below that of {', '.join(needing)}"
        fault = Fault(point.name, message, f"delete {needing[0]} first")
        raise SpecInvalid([fault], f"machine {spec.name!r}")


async def _refuse_users(machine: Changeable, point: Snapshot, files: Sequence[str]) -> None:
    """Other machines would see their bases change, or lose them."""
    if users := await machine.ledger.users_of(files):
        message = f"its files are below the disks of {', '.join(users)}"
        hint = f"give {users[0]} disks of its own (qmpkit disk flatten), or delete it"
        raise SpecInvalid([Fault(point.name, message, hint)], f"machine {machine.name!r}")


def _above(others: list[tuple[str, Path, str | None]], file: Path) -> list[str]:
    """Those of *others* whose images have *file* below them.  Blocking."""
    return [
        name
        for name, path, format in others
        if any(_same_file(layer.path, file) for layer in walk_chain(path, format).layers[1:])
    ]


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _refuse_inner_points(spec: MachineSpec, disk_id: str, upper: Layer) -> None:
    inside = [
        snapshot.name
        for snapshot in spec.snapshots
        if snapshot.kind == "internal" and snapshot.disks.get(disk_id) == upper.file
    ]
    if inside:
        message = f"{upper.file} holds internal snapshots that a merge would lose"
        hint = f"delete {', '.join(inside)} first"
        raise SpecInvalid([Fault(disk_id, message, hint)], f"machine {spec.name!r}")


def _recorded(base: Layer, above: Layer) -> str:
    below, file = PurePath(base.file), PurePath(above.file)
    return f"./{below.name}" if below.parent == file.parent else base.file


def _with_point(spec: MachineSpec, point: Snapshot) -> MachineSpec:
    points = [point if known.name == point.name else known for known in spec.snapshots]
    return attrs.evolve(spec, snapshots=points)


def deleted_from(
    spec: MachineSpec, disk_id: str, point: Snapshot, upper: Layer, base: Layer, *, active: bool
) -> MachineSpec:
    """What a restart builds once the layer above a point's has been merged into it.  Pure."""
    points = [_moved(known, disk_id, upper.file, base) for known in spec.snapshots]
    spec = without_point(attrs.evolve(spec, snapshots=points), disk_id, point)
    if not active:
        return spec
    (disk,) = (disk for disk in spec.disks if disk.id == disk_id)
    return with_disks(spec, [_on_layer(disk, base)])


def _moved(point: Snapshot, disk_id: str, file: str, base: Layer) -> Snapshot:
    """What was in *file* is in the layer *base* now."""
    if point.disks.get(disk_id) != file:
        return point
    return attrs.evolve(
        point,
        disks={**point.disks, disk_id: base.file},
        formats={**point.formats, disk_id: base.format},
    )


def without_point(spec: MachineSpec, disk_id: str, point: Snapshot) -> MachineSpec:
    """Without a point on one disk; without that disk it may have nothing left, and is gone.

    Those that came from it come from the one before then.  Pure.
    """
    disks = {disk: file for disk, file in point.disks.items() if disk != disk_id}
    formats = {disk: format for disk, format in point.formats.items() if disk != disk_id}
    rest = attrs.evolve(point, disks=disks, formats=formats, whole=False)
    points = [rest if it.name == point.name else it for it in spec.snapshots]
    if disks:
        return attrs.evolve(spec, snapshots=points)
    heirs = {point.name: point.parent}
    points = [
        attrs.evolve(it, parent=heirs.get(it.parent or "", it.parent))
        for it in points
        if it.name != point.name
    ]
    at = heirs.get(spec.snapshot or "", spec.snapshot)
    return attrs.evolve(spec, snapshots=points, snapshot=at)


def _on_layer(disk: Disk, layer: Layer) -> Disk:
    # A point's layer was this disk's own, so its format and driver are among a disk's.
    place: Any = {"format": layer.format, "driver": layer.driver}
    at_first = disk.origin in (None, layer.file)
    return attrs.evolve(
        disk,
        file=layer.file,
        node=None if layer.is_nameless else layer.node,
        make=None,
        origin=None if at_first else disk.origin,
        **place,
    )
