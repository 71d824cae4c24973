"""Backups that another program fetches: the disks at one moment, served by NBD.

What the guest is about to overwrite is copied first, into an image of its own (`fleecing`):
that image, with the disk below it, shows the moment for as long as the block lasts.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.errors import Fault, MachineDied, MachineGone, SpecInvalid
from qmpkit.images.new import place_backup
from qmpkit.images.tool import Asked
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.backup import let_go_on
from qmpkit.operations.block.backup_plan import dirty_bitmaps, free_targets
from qmpkit.operations.block.graph import Layer, graph_of
from qmpkit.operations.block.layers import STEP_GRACE, remove_nodes
from qmpkit.operations.block.pull_folder import FLEECE, SERVER, SOCKET, held_folder, removed_folder
from qmpkit.operations.block.pull_relay import relayed
from qmpkit.operations.block.snapshots import Freeze
from qmpkit.operations.block.undertaking import undertaking
from qmpkit.operations.job_groups import JobGroup, job_group
from qmpkit.qmp.errors import CommandRefused, MonitorGarbled, MonitorLost
from qmpkit.qmp.events import Subscription
from qmpkit.spec.snapshots import snapshot_name_problem

__all__ = ["Pull", "PulledDisk", "drop_checkpoint", "pulling"]

_LOST = (MachineGone, MachineDied, MonitorLost, MonitorGarbled)
_PATH_LIMIT = 107  # bytes of the path of a socket
_DIRTY = "qk-pull"
"""The bitmap that stands still, of what has changed since the checkpoint."""


@attrs.frozen
class PulledDisk:
    """One disk that is served.

    `export`: its name, `uri` where it is.  `size` in bytes.  `context`: the NBD metadata
    context that tells what has changed since the checkpoint, None when all has to be
    fetched; `why` says why, when a checkpoint was asked for.
    """

    export: str
    uri: str
    size: int
    context: str | None = None
    why: str = ""


@attrs.frozen
class Pull:
    """The disks as they were at `time`, in seconds since the epoch, by their ids."""

    socket: Path
    time: float
    disks: dict[str, PulledDisk]


@attrs.frozen
class _Served:
    """What is made for one disk; `since` and `checkpoint` are names of bitmaps."""

    disk: str
    top: Layer
    node: str
    file: Path
    since: str | None
    checkpoint: str | None
    why: str

    @property
    def job(self) -> str:
        return f"{self.node}-{self.disk}"


@asynccontextmanager
async def pulling(
    machine: Changeable,
    folder: Path,
    *,
    since: str | None = None,
    checkpoint: str | None = None,
    freeze: Freeze | None = None,
) -> AsyncIterator[Pull]:
    """See `Backups.pulling`."""
    folder = Asked.of("serve disks from", folder).path
    socket = folder / SOCKET
    _check(machine, socket, since, checkpoint)
    async with machine.changing:
        await _refuse_threads(machine)
        served = await _planned(machine, folder, since, checkpoint)
        change = Change(
            what="serve its disks for a backup",
            spec=machine.spec,
            begun=machine.spec,
            jobs=tuple(it.job for it in served),
            nodes=tuple(node for it in served for node in (it.node, f"{it.node}-file")),
            files=tuple(str(it.file) for it in served),
            frozen=freeze is not None,
            serving=True,
        )
        async with (
            undertaking(machine, change),
            _made(machine, folder, served),
            _going_on(machine),
            job_group(machine, change.jobs, asked="serve its disks") as jobs,
        ):
            with machine.subscribe("BLOCK_IO_ERROR", where={"operation": "write"}) as errors:
                when = await _started(served, jobs, freeze)
                async with _listening(machine, socket, served), _watched(machine, jobs, errors):
                    yield Pull(socket, when, {it.disk: _told(it, socket) for it in served})


def _check(machine: Changeable, socket: Path, since: str | None, checkpoint: str | None) -> None:
    faults = [
        Fault(where, problem.replace("snapshot's", "checkpoint's"))
        for where, name in (("since", since), ("checkpoint", checkpoint))
        if name is not None and (problem := snapshot_name_problem(name))
    ]
    if since is not None and since == checkpoint:
        faults.append(Fault("checkpoint", f"{since!r} is the one before", "choose another name"))
    if len(os.fsencode(socket)) > _PATH_LIMIT:
        message = f"{socket} has more than the {_PATH_LIMIT} bytes of a socket's path"
        faults.append(Fault("folder", message, "choose a shorter one"))
    if not any(not disk.is_readonly for disk in machine.spec.disks):
        faults.append(Fault("disks", "it has no disk that it can write to"))
    if faults:
        raise SpecInvalid(faults, f"machine {machine.name!r}")


async def _refuse_threads(machine: Changeable) -> None:
    """QEMU before 9.0 aborts when an NBD client leaves that another thread has served."""
    threaded = [disk.id for disk in machine.spec.disks if disk.iothread and not disk.is_readonly]
    if threaded and (await machine.execute("query-version"))["qemu"]["major"] < 9:
        message = "it has an iothread, and this QEMU, before 9.0, would abort when a client leaves"
        hint = "take iothread out of its spec, update QEMU, or use backups.run"
        faults = [Fault(f"disks.{disk}", message, hint) for disk in threaded]
        raise SpecInvalid(faults, f"machine {machine.name!r}")


async def _planned(
    machine: Changeable, folder: Path, since: str | None, checkpoint: str | None
) -> tuple[_Served, ...]:
    graph, bitmaps = await graph_of(machine), await dirty_bitmaps(machine)
    names = free_targets(graph)
    served: list[_Served] = []
    for disk in machine.spec.disks:
        if disk.is_readonly:
            continue
        top = graph.chain(disk.id)[0]
        known = bitmaps.of(top.node)
        if checkpoint is not None and _bitmap(checkpoint, disk.id) in known:
            fault = Fault("checkpoint", f"there is {checkpoint!r} already", "drop it first")
            raise SpecInvalid([fault], f"machine {machine.name!r}")
        why = "" if since is None else _unfit(known.get(_bitmap(since, disk.id)), since)
        served.append(
            _Served(
                disk.id,
                top,
                next(names),
                folder / f"{disk.id}{FLEECE}",
                None if since is None or why else _bitmap(since, disk.id),
                _bitmap(checkpoint, disk.id) if checkpoint and not bitmaps.unable(top) else None,
                why,
            )
        )
    return tuple(served)


def _bitmap(checkpoint: str, disk: str) -> str:
    # The disk's, too: one that takes another's place has not recorded what that has.
    return f"{_checkpoint(checkpoint)}{disk}"


def _checkpoint(name: str) -> str:
    """What the bitmaps of a checkpoint begin with."""
    return f"qk-checkpoint-{name}@"


def _unfit(bitmap: Mapping[str, Any] | None, since: str) -> str:
    if bitmap is None:
        return f"it has no checkpoint {since!r}"
    if bitmap.get("inconsistent") or not bitmap["recording"] or bitmap["busy"]:
        return f"its checkpoint {since!r} may lack changes"
    return ""


@asynccontextmanager
async def _made(
    machine: Changeable, folder: Path, served: Sequence[_Served]
) -> AsyncIterator[None]:
    """The folder, the images that take what is overwritten, and their nodes."""
    asked = Asked.of("serve disks from", folder)
    lock = await trio.to_thread.run_sync(held_folder, asked)
    added = [it.checkpoint for it in served]
    try:
        await _remove_bitmaps(machine, [(it, _DIRTY) for it in served])
        for it in served:
            await place_backup(it.file, None, it.top.size)
            lower = {"driver": "file", "node-name": f"{it.node}-file", "filename": str(it.file)}
            upper = {"driver": "qcow2", "node-name": it.node, "file": lower["node-name"]}
            for blockdev in (lower, {**upper, "backing": it.top.node}):
                await machine.execute("blockdev-add", blockdev)
        yield
        added = []
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True):
            with suppress(*_LOST):
                nodes = (node for it in served for node in (it.node, f"{it.node}-file"))
                await remove_nodes(machine, nodes)
                gone = [(it, name) for it, name in zip(served, added, strict=False) if name]
                await _remove_bitmaps(machine, [*gone, *((it, _DIRTY) for it in served)])
            await trio.to_thread.run_sync(removed_folder, lock, folder)


async def _remove_bitmaps(machine: Changeable, bitmaps: Iterable[tuple[_Served, str]]) -> None:
    for it, name in bitmaps:
        with suppress(CommandRefused):  # it is not there
            words = {"node": it.top.node, "name": name}
            await machine.execute("block-dirty-bitmap-remove", words)


async def _started(served: Sequence[_Served], jobs: JobGroup, freeze: Freeze | None) -> float:
    """The moment, in seconds since the epoch."""
    actions = [action for it in served for action in _actions(it)]
    async with freeze() if freeze else nullcontext():
        await jobs.start(actions)
        return time.time()


def _actions(it: _Served) -> list[dict[str, Any]]:
    node = it.top.node
    actions: list[dict[str, Any]] = []
    if it.since is not None:
        still = {"node": node, "name": _DIRTY, "disabled": True}
        merge = {"node": node, "target": _DIRTY, "bitmaps": [it.since]}
        actions.append({"type": "block-dirty-bitmap-add", "data": still})
        actions.append({"type": "block-dirty-bitmap-merge", "data": merge})
    if it.checkpoint is not None:
        words = {"node": node, "name": it.checkpoint, "persistent": True}
        actions.append({"type": "block-dirty-bitmap-add", "data": words})
    job = {"job-id": it.job, "device": node, "target": it.node, "sync": "none"}
    actions.append({"type": "blockdev-backup", "data": {**job, "auto-dismiss": False}})
    return actions


@asynccontextmanager
async def _listening(
    machine: Changeable, socket: Path, served: Sequence[_Served]
) -> AsyncIterator[None]:
    """QEMU has one NBD server: when it serves another's exports, this is CommandRefused."""
    server = socket.with_name(SERVER)
    address = {"type": "unix", "data": {"path": str(server)}}
    ours = True
    try:
        try:
            await machine.execute("nbd-server-start", {"addr": address})
        except CommandRefused:
            ours = False
            raise
        for it in served:
            words = {"type": "nbd", "id": it.job, "node-name": it.node, "name": it.disk}
            bitmaps = [] if it.since is None else [_DIRTY]
            await machine.execute("block-export-add", {**words, "bitmaps": bitmaps})
        async with relayed(socket, server):
            yield
    finally:
        if ours:  # it ends the exports, whose clients are gone
            with trio.move_on_after(STEP_GRACE, shield=True), suppress(CommandRefused, *_LOST):
                await machine.execute("nbd-server-stop")


@asynccontextmanager
async def _watched(
    machine: Changeable, jobs: JobGroup, errors: Subscription
) -> AsyncIterator[None]:
    """The block is cancelled when the moment cannot be kept any longer."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(jobs.failed)
            nursery.start_soon(_refused, machine, jobs, errors)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_collapsed(group)


async def _refused(machine: Changeable, jobs: JobGroup, errors: Subscription) -> None:
    """QEMU lets a write of the guest fail rather than lose what is served, and no job says so."""
    event = await errors.next()
    why = f"{event.data.get('reason', 'no reason given')}: a write of the guest failed by that"
    raise jobs.broken(why)


@asynccontextmanager
async def _going_on(machine: Changeable) -> AsyncIterator[None]:
    """A guest that such a write has stopped tries it again, once nothing is served any more."""
    ran = (await machine.execute("query-status"))["running"]
    try:
        yield
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*_LOST):
            await let_go_on(machine, ran=ran)


def _told(it: _Served, socket: Path) -> PulledDisk:
    uri = f"nbd+unix:///{it.disk}?socket={quote(str(socket))}"
    context = None if it.since is None else f"qemu:dirty-bitmap:{_DIRTY}"
    return PulledDisk(it.disk, uri, it.top.size, context, it.why)


async def drop_checkpoint(machine: Changeable, name: str) -> None:
    """See `Backups.drop_checkpoint`."""
    async with machine.changing:
        for node, known in await dirty_bitmaps(machine):
            if known.startswith(_checkpoint(name)):
                with suppress(CommandRefused):  # in an image that is only read
                    words = {"node": node, "name": known}
                    await machine.execute("block-dirty-bitmap-remove", words)
