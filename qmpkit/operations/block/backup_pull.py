"""Backups that another program fetches: the disks at one moment, served by NBD."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.backups.private_folder import SOCKET
from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.tool import Asked
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.backup_plan import dirty_bitmaps, free_targets
from qmpkit.operations.block.fleece import (
    Fleece,
    fleecing,
    going_on,
    listening,
    refuse_threads,
    socket_fault,
    watched,
)
from qmpkit.operations.block.graph import graph_of
from qmpkit.operations.block.pull_tls import tcp_of
from qmpkit.operations.block.saved_memory import refuse_saved
from qmpkit.operations.block.snapshots import Freeze
from qmpkit.operations.job_groups import JobGroup, job_group
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.undertaking import undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.snapshots import snapshot_name_problem

__all__ = ["Pull", "PulledDisk", "drop_checkpoint", "pulling"]

_ASKED = "serve its disks"
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
    """The disks as they were at `time`, in seconds since the epoch, by their ids.

    `address`: where they are served by TCP, "host:port", None when they are not.
    """

    socket: Path
    time: float
    disks: dict[str, PulledDisk]
    address: str | None = None


@attrs.frozen
class _Served:
    """What is made for one disk; `since` and `checkpoint` are names of bitmaps."""

    fleece: Fleece
    since: str | None
    checkpoint: str | None
    why: str


@asynccontextmanager
async def pulling(
    machine: Changeable,
    folder: Path,
    *,
    since: str | None = None,
    checkpoint: str | None = None,
    freeze: Freeze | None = None,
    listen: str | None = None,
    tls: str | os.PathLike[str] | None = None,
) -> AsyncIterator[Pull]:
    """See `Backups.pulling`."""
    folder = Asked.of("serve disks from", folder).path
    socket = folder / SOCKET
    _check(machine, folder, since, checkpoint)
    if checkpoint is not None:  # a bitmap in the images
        refuse_saved(machine.spec, "checkpoint")
    tcp = await trio.to_thread.run_sync(tcp_of, listen, tls, f"machine {machine.name!r}")
    async with machine.changing:
        await refuse_threads(machine)
        served = await _planned(machine, folder, since, checkpoint)
        fleeces = tuple(it.fleece for it in served)
        change = Change(
            what="serve its disks for a backup",
            spec=machine.spec,
            begun=machine.spec,
            jobs=tuple(it.job for it in fleeces),
            nodes=tuple(node for it in fleeces for node in it.nodes),
            files=tuple(str(it.file) for it in fleeces),
            frozen=freeze is not None,
            serving=True,
        )
        still = {it.fleece.disk: [_DIRTY] for it in served if it.since is not None}
        async with (
            undertaking(machine, change),
            _bitmaps(machine, served),
            fleecing(machine, folder, fleeces),
            going_on(machine),
            job_group(machine, change.jobs, asked=_ASKED) as jobs,
        ):
            with machine.subscribe("BLOCK_IO_ERROR", where={"operation": "write"}) as errors:
                when = await _started(served, jobs, freeze)
                async with (
                    listening(machine, socket, fleeces, still, tcp) as port,
                    watched(jobs, errors),
                ):
                    address = None if tcp is None else tcp.told(port)
                    disks = {it.fleece.disk: _told(it, address) for it in served}
                    yield Pull(socket, when, disks, address)


def _check(machine: Changeable, folder: Path, since: str | None, checkpoint: str | None) -> None:
    faults = [
        Fault(where, problem.replace("snapshot's", "checkpoint's"))
        for where, name in (("since", since), ("checkpoint", checkpoint))
        if name is not None and (problem := snapshot_name_problem(name))
    ]
    if since is not None and since == checkpoint:
        faults.append(Fault("checkpoint", f"{since!r} is the one before", "choose another name"))
    if (fault := socket_fault(folder)) is not None:
        faults.append(fault)
    if not any(not disk.is_readonly for disk in machine.spec.disks):
        faults.append(Fault("disks", "it has no disk that it can write to"))
    if faults:
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
                Fleece(disk.id, top.node, top.size, next(names), folder, disk.luks),
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
async def _bitmaps(machine: Changeable, served: Sequence[_Served]) -> AsyncIterator[None]:
    """What stands still does not outlive the block, nor a new checkpoint its failure."""
    still = [(it.fleece.source, _DIRTY) for it in served]
    added = [(it.fleece.source, it.checkpoint) for it in served if it.checkpoint]
    await _remove_bitmaps(machine, still)
    try:
        yield
        added = []
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
            await _remove_bitmaps(machine, [*added, *still])


async def _remove_bitmaps(machine: Changeable, bitmaps: Iterable[tuple[str, str]]) -> None:
    for node, name in bitmaps:
        with suppress(CommandRefused):  # it is not there
            await machine.execute("block-dirty-bitmap-remove", {"node": node, "name": name})


async def _started(served: Sequence[_Served], jobs: JobGroup, freeze: Freeze | None) -> float:
    """The moment, in seconds since the epoch."""
    actions = [action for it in served for action in _actions(it)]
    async with freeze() if freeze else nullcontext():
        await jobs.start(actions)
        return time.time()


def _actions(it: _Served) -> list[dict[str, Any]]:
    node = it.fleece.source
    actions: list[dict[str, Any]] = []
    if it.since is not None:
        still = {"node": node, "name": _DIRTY, "disabled": True}
        merge = {"node": node, "target": _DIRTY, "bitmaps": [it.since]}
        actions.append({"type": "block-dirty-bitmap-add", "data": still})
        actions.append({"type": "block-dirty-bitmap-merge", "data": merge})
    if it.checkpoint is not None:
        words = {"node": node, "name": it.checkpoint, "persistent": True}
        actions.append({"type": "block-dirty-bitmap-add", "data": words})
    return [*actions, it.fleece.action]


def _told(it: _Served, address: str | None) -> PulledDisk:
    fleece = it.fleece
    uri = fleece.uri if address is None else f"nbds://{address}/{fleece.disk}"
    context = None if it.since is None else f"qemu:dirty-bitmap:{_DIRTY}"
    return PulledDisk(fleece.disk, uri, fleece.size, context, it.why)


async def drop_checkpoint(machine: Changeable, name: str) -> None:
    """See `Backups.drop_checkpoint`."""
    async with machine.changing:
        for node, known in await dirty_bitmaps(machine):
            if known.startswith(_checkpoint(name)):
                with suppress(CommandRefused):  # in an image that is only read
                    words = {"node": node, "name": known}
                    await machine.execute("block-dirty-bitmap-remove", words)
