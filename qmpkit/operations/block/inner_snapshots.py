"""Snapshots that the images hold themselves, with the machine's RAM (QEMU 6.0).

QEMU skips a writable disk silently that is not named, and what comes of that is no point in
time: so all of them are named, and one that cannot hold a snapshot is refused before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.backup_plan import remove_bitmaps
from qmpkit.operations.block.graph import Graph, Layer, graph_of
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.jobs import Progress, follow, free_job_id, job
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.operations.undertaking import undertaking
from qmpkit.spec.block import Disk
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.snapshots import Snapshot, free_tag, tag_of

__all__ = ["delete_inner", "load_inner", "remove_tag", "take_inner"]


async def take_inner(
    machine: Changeable, name: str, *, description: str = "", progress: Progress | None = None
) -> Snapshot:
    """Save the disks and the RAM under *name* (`snapshot-save`); the guest stands still meanwhile.

    Raises SpecInvalid when a disk that the guest can write to is not qcow2.
    """
    layers = _layers(machine.spec, await graph_of(machine))
    tag = free_tag(name, machine.spec.snapshots)
    point = Snapshot(
        name=name,
        tag=None if tag == name else tag,
        kind="internal",
        time=time.time(),
        parent=machine.spec.snapshot,
        disks={disk: layer.file for disk, layer in layers.items()},
        formats={disk: layer.format for disk, layer in layers.items()},
        description=description,
    )
    spec = attrs.evolve(machine.spec, snapshots=(*machine.spec.snapshots, point), snapshot=name)
    nodes = [layer.node for layer in layers.values()]
    words = {"tag": tag, "vmstate": nodes[0], "devices": nodes}
    asked = f"take the snapshot {name!r}"
    try:
        await _run(machine, "snapshot-save", words, asked, spec, progress, tag=tag)
    except (trio.Cancelled, JobFailed):
        if point not in machine.spec.snapshots:
            with trio.move_on_after(STEP_GRACE, shield=True):
                await remove_tag(machine, tag)
        raise
    return point


async def remove_tag(machine: Changeable, tag: str) -> None:
    """Take a snapshot that is on no record out of the images that have it."""
    nodes = await machine.execute("query-named-block-nodes", {"flat": True})
    holding = [
        node["node-name"]
        for node in nodes
        if any(it["name"] == tag for it in node["image"].get("snapshots", ()))
    ]
    # The node of a file shows what the format above it has, too.
    holding = [node for node in holding if not node.endswith("-file")]
    if holding:
        name = await free_job_id(machine, "delete", "machine")
        words = {"tag": tag, "devices": holding}
        asked = f"delete the snapshot {tag!r}"
        async with job(machine, "snapshot-delete", words, id=name, asked=asked) as running:
            await running.ended()


async def load_inner(
    machine: Changeable, point: Snapshot, *, progress: Progress | None = None
) -> None:
    """Go back to *point*, disks and RAM (`snapshot-load`), in the run state that it has.

    What the guest has done since is lost.  One that fails leaves the guest as it was.
    """
    layers = _layers(machine.spec, await graph_of(machine))
    moved = sorted(layers.keys() ^ point.disks.keys())
    moved = moved or [disk for disk, file in point.disks.items() if layers[disk].file != file]
    if moved:
        what = ", ".join(moved)
        message = f"disk {what} is on another image than at {point.name!r}"
        hint = "delete the external snapshots that were taken since"
        raise SpecInvalid([Fault(point.name, message, hint)], f"machine {machine.name!r}")
    nodes = [layer.node for layer in layers.values()]
    words = {"tag": tag_of(point), "vmstate": nodes[0], "devices": nodes}
    spec = attrs.evolve(machine.spec, snapshot=point.name)
    asked = f"go back to the snapshot {point.name!r}"
    # What a bitmap records would be wrong then, and QEMU goes back to nothing with one.
    await remove_bitmaps(machine, "")
    ran = (await machine.execute("query-status"))["running"]
    try:
        await _run(machine, "snapshot-load", words, asked, spec, progress)
    except BaseException:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await _recover(machine, ran=ran)
        raise


async def _recover(machine: Changeable, *, ran: bool) -> None:
    """A load that has failed leaves the run state "restore-vm", in which a guest never runs."""
    if (await machine.execute("query-status"))["status"] == "restore-vm":
        await machine.execute("cont")
        if not ran:
            await machine.execute("stop")


async def delete_inner(machine: Changeable, point: Snapshot) -> None:
    """Take *point* out of the images (`snapshot-delete`)."""
    graph = await graph_of(machine)
    used = {layer.file for disk in graph.disks for layer in graph.chain(disk)}
    layers = {disk: graph.chain(disk)[0] for disk in point.disks if disk in graph.disks}
    for disk, file in point.disks.items():
        if file in used and (disk not in layers or layers[disk].file != file):
            message = f"it is in {file}, which is below other layers now"
            hint = "delete the external snapshots that were taken since"
            raise SpecInvalid([Fault(disk, message, hint)], f"machine {machine.name!r}")
    # In an image that the machine has left it stays, as the rest of that does.
    held = [layers[disk].node for disk, file in point.disks.items() if file in used]
    spec = machine.spec
    points = [
        attrs.evolve(known, parent=point.parent) if known.parent == point.name else known
        for known in spec.snapshots
        if known.name != point.name
    ]
    at = point.parent if spec.snapshot == point.name else spec.snapshot
    asked = f"delete the snapshot {point.name!r}"
    done = attrs.evolve(spec, snapshots=points, snapshot=at)
    if held:
        words = {"tag": tag_of(point), "devices": held}
        return await _run(machine, "snapshot-delete", words, asked, done, None)
    async with undertaking(machine, Change(what=asked, spec=done, begun=spec)) as it:
        it.done()
    return None


async def _run(
    machine: Changeable,
    command: str,
    words: Mapping[str, object],
    asked: str,
    spec: MachineSpec,
    progress: Progress | None,
    tag: str = "",
) -> None:
    name = await free_job_id(machine, command.replace("snapshot-", ""), "machine")
    change = Change(what=asked, spec=spec, begun=machine.spec, job=name, tag=tag)
    async with (
        undertaking(machine, change) as it,
        job(machine, command, words, id=name, asked=asked) as running,
    ):
        await follow(running, progress)
        await running.ended()
        it.done()


def _layers(spec: MachineSpec, graph: Graph) -> dict[str, Layer]:
    disks = [disk for disk in spec.disks if not disk.is_readonly]
    layers = {disk.id: graph.chain(disk.id)[0] for disk in disks}
    faults = [*_faults(layers), *_encrypted(disks)]
    if not layers:
        hint = "give it a qcow2 disk: the images hold the RAM"
        faults.append(Fault("disks", "it has no disk to write to", hint))
    if faults:
        raise SpecInvalid(faults, f"machine {spec.name!r}")
    return layers


def _encrypted(disks: Sequence[Disk]) -> Sequence[Fault]:
    """QEMU 7.2 and 10.0 abort when they write the memory into such an image."""
    return [
        Fault(f"disks.{disk.id}", "an encrypted image takes no memory", "take one without it")
        for disk in disks
        if disk.luks is not None
    ]


def _faults(layers: dict[str, Layer]) -> Sequence[Fault]:
    hint = "convert it to qcow2, make it readonly, or take an external snapshot"
    return [
        Fault(f"disks.{disk}", f"a {layer.format} image holds no snapshots", hint)
        for disk, layer in layers.items()
        if layer.format != "qcow2"
    ]
