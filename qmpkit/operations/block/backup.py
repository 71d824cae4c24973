"""Backups of a machine that runs: all its disks at one moment, into a folder of layers.

One transaction starts the copies and, in the same moment, the bitmaps that record what
changes from then on.  The bitmap before it is removed when the manifest has the new point:
until then it can be tried again from where it was.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.backups.repository import MOMENT, Repository, draft_of, repository
from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.hashing import Digest, digest_of, trickling
from qmpkit.images.tool import Asked
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.backup_compare import Moment, fleeces_of, moment
from qmpkit.operations.block.backup_plan import Copy, Mode, dirty_bitmaps, planned, remove_bitmaps
from qmpkit.operations.block.fleece import Fleece, refuse_threads, socket_fault
from qmpkit.operations.block.graph import graph_of
from qmpkit.operations.block.layers import Made, formatted, making, new_file
from qmpkit.operations.block.saved_memory import refuse_saved
from qmpkit.operations.block.snapshots import Freeze
from qmpkit.operations.job_groups import job_group
from qmpkit.operations.jobs import JobState, Progress, progress_of
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.undertaking import undertaking
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.backups import BackupLayer, BackupPoint, bitmaps_of
from qmpkit.spec.sizes import format_size

__all__ = ["run_backup"]

_ASKED = "back its disks up"
_WORKERS = 16  # each with a buffer of 1 MiB


@attrs.frozen
class _Wanted:
    compress: bool
    speed: int
    freeze: Freeze | None
    progress: Progress | None
    compare: bool


async def run_backup(
    machine: Changeable,
    folder: Path,
    *,
    mode: Mode = "auto",
    compress: bool = False,
    speed: int = 0,
    freeze: Freeze | None = None,
    progress: Progress | None = None,
    plain: bool = False,
    compare: bool = False,
) -> BackupPoint:
    """See `Backups.run`."""
    faults = [*_faults(machine, speed=speed, plain=plain)]
    if compare and (fault := socket_fault(Asked.of("back up to", folder).path / MOMENT)):
        faults.append(fault)
    if faults:
        raise SpecInvalid(faults, f"machine {machine.name!r}")
    refuse_saved(machine.spec, "backup")  # whose bitmaps are in the images
    wanted = _Wanted(compress, speed, freeze, progress, compare)
    held = repository(folder, doing="back up to", change=True, new_of=machine.name)
    async with held as place, machine.changing:
        if compare:
            await refuse_threads(machine)
        copies = await _planned(machine, place, mode)
        if not compress:
            await trio.to_thread.run_sync(_refuse_full, place, copies)
        fleeces = [*fleeces_of(machine, place, copies)] if compare else []
        nodes = [node for copy in copies for node in (copy.target, f"{copy.target}-file")]
        files = [draft_of(place.path(copy.file)) for copy in copies]
        change = Change(
            what=f"back up to {place.folder}",
            spec=machine.spec,
            begun=machine.spec,
            jobs=(*(copy.job for copy in copies), *(it.job for it in fleeces)),
            nodes=(*nodes, *(node for it in fleeces for node in it.nodes)),
            files=tuple(str(file) for file in (*files, *(it.file for it in fleeces))),
            frozen=freeze is not None,
            serving=compare,
        )
        async with undertaking(machine, change), making(machine) as made:
            return await _carried_out(machine, place, copies, fleeces, wanted, made)


def _faults(machine: Changeable, *, speed: int, plain: bool) -> Iterator[Fault]:
    if speed < 0:
        yield Fault("speed", f"counts from 0, not from {speed}")
    for disk in machine.spec.disks:
        if disk.luks is not None and not disk.is_readonly and not plain:
            message = "it is encrypted, and its backup would show in clear what it holds"
            hint = "plain=True (--plain) if that is wanted: the folder then needs a safe place"
            yield Fault(disk.id, message, hint)


async def _planned(machine: Changeable, place: Repository, mode: Mode) -> tuple[Copy, ...]:
    manifest = place.manifest
    graph = await graph_of(machine)
    bitmaps = await dirty_bitmaps(machine)
    plan = partial(planned, machine, graph, bitmaps, manifest, mode, place.folder)
    copies = await trio.to_thread.run_sync(plan)
    # Of a point that was never finished, or whose bitmap is of no use.
    await remove_bitmaps(machine, manifest.id, bitmaps_of(manifest.last))
    return copies


def _refuse_full(place: Repository, copies: Sequence[Copy]) -> None:
    """A target that is full while the guest writes holds up the guest: look before."""
    try:
        free = shutil.disk_usage(place.folder).free
    except OSError as error:
        raise place.asked.failed_by(error) from error
    needed = sum(copy.bytes for copy in copies)
    if needed > free:
        left, right = format_size(needed), format_size(free)
        said = f"No space left on device ({left} needed, {right} free)"
        raise place.asked.failed_by(OSError(errno.ENOSPC, said))


async def _carried_out(
    machine: Changeable,
    place: Repository,
    copies: Sequence[Copy],
    fleeces: Sequence[Fleece],
    wanted: _Wanted,
    made: Made,
) -> BackupPoint:
    async with _new_bitmaps(machine, copies):
        for copy in copies:
            await _make_target(machine, place, copy, made)
        drafts = [draft_of(place.path(copy.file)) for copy in copies]
        async with moment(machine, place, fleeces) as it:
            async with trickling(drafts, place.asked):
                when = await _copied(machine, copies, wanted, it)
            await _close(machine, copies)
            await it.compare(copies, wanted.progress)
        digests = await _digests(place, drafts, wanted.progress)
        layers = {
            copy.disk: _layer(copy, digest, compressed=wanted.compress)
            for copy, digest in zip(copies, digests, strict=True)
        }
        manifest = place.manifest
        number = manifest.last.number + 1 if manifest.last else 1
        frozen = wanted.freeze is not None
        point = BackupPoint(number=number, time=when, disks=layers, frozen=frozen)
        manifest = attrs.evolve(manifest, points=(*manifest.points, point))
        await place.seal(manifest, [place.path(copy.file) for copy in copies])
        made.keep()
    with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
        await remove_bitmaps(machine, manifest.id, bitmaps_of(point))
    return point


async def _close(machine: Changeable, copies: Sequence[Copy]) -> None:
    """The files are whole when QEMU has closed them: one that it does not close is no layer."""
    for copy in copies:
        for node in (copy.target, f"{copy.target}-file"):
            await machine.execute("blockdev-del", {"node-name": node})


async def _make_target(machine: Changeable, place: Repository, copy: Copy, made: Made) -> None:
    path = draft_of(place.path(copy.file))
    made.file(await trio.to_thread.run_sync(new_file, place.asked, path))
    # Unflushed: the file is synced once, while its checksum is computed.
    cache = {"cache": {"direct": False, "no-flush": True}}
    name = f"{copy.target}-file"
    lower = {"driver": "file", "node-name": name, "filename": str(path), **cache}
    # Without the layers below: whole clusters are written, and nothing of those is read.
    upper = {"driver": "qcow2", "node-name": copy.target, "file": name, **cache}
    await made.nodes(lower)
    await formatted(machine, name, copy.size, parent=copy.parent, id=copy.job, asked=_ASKED)
    await made.nodes({**upper, "backing": None} if copy.parent else upper)


@asynccontextmanager
async def _new_bitmaps(machine: Changeable, copies: Sequence[Copy]) -> AsyncIterator[None]:
    """The bitmaps that are added within do not outlive a failure."""
    try:
        yield
    except BaseException:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
            for copy in copies:
                if copy.bitmap is not None:
                    with suppress(CommandRefused):
                        words = {"node": copy.node, "name": copy.bitmap}
                        await machine.execute("block-dirty-bitmap-remove", words)
        raise


async def _copied(
    machine: Changeable, copies: Sequence[Copy], wanted: _Wanted, it: Moment
) -> float:
    """Have QEMU copy, all from one moment on; that moment, in seconds since the epoch."""
    plain = [action for copy in copies for action in _actions(copy, wanted, len(copies))]
    ids = [copy.job for copy in copies]
    async with job_group(machine, ids, asked=_ASKED) as jobs:
        async with wanted.freeze() if wanted.freeze else nullcontext():
            try:
                await jobs.start([*it.actions, *(_tuned(action) for action in plain)])
            except CommandRefused:  # for an experimental parameter, or for a reason
                await jobs.start([*it.actions, *plain])
            when = time.time()
        async with it.held(jobs):
            async for state in jobs.progress():
                if wanted.progress is not None:
                    wanted.progress(state)
    return when


def _actions(copy: Copy, wanted: _Wanted, of: int) -> list[dict[str, Any]]:
    job: dict[str, Any] = {
        "job-id": copy.job,
        "device": copy.node,
        "target": copy.target,
        "sync": "full",
        "compress": wanted.compress,
        "speed": max(wanted.speed // of, 1) if wanted.speed else 0,
        "auto-dismiss": False,
    }
    if copy.since is not None:
        # "never": the old bitmap goes on recording, in case this comes to nothing.
        job |= {"sync": "bitmap", "bitmap": copy.since, "bitmap-mode": "never"}
    actions = [{"type": "blockdev-backup", "data": job}]
    if copy.bitmap is not None:
        words = {"node": copy.node, "name": copy.bitmap, "persistent": True}
        actions.insert(0, {"type": "block-dirty-bitmap-add", "data": words})
    return actions


def _tuned(action: dict[str, Any]) -> dict[str, Any]:
    """With as many requests at once as keep processors busy; QEMU's 64 are in each other's way."""
    if action["type"] != "blockdev-backup":
        return action
    return {**action, "data": {**action["data"], "x-perf": {"max-workers": _WORKERS}}}


async def _digests(
    place: Repository, drafts: Sequence[Path], progress: Progress | None
) -> list[Digest]:
    try:
        told = await trio.to_thread.run_sync(_told_of, drafts, progress)
    except OSError as error:  # the folder is gone
        raise place.asked.failed_by(error) from error
    return [await digest_of(draft, place.asked, told, safe=True) for draft in drafts]


def _told_of(drafts: Sequence[Path], progress: Progress | None) -> Any:
    """Tells of the reading as of a job of the type "checksum"."""
    if progress is None:
        return None
    total, done, since = sum(draft.stat().st_size for draft in drafts), 0, time.monotonic()

    def told(count: int) -> None:
        nonlocal done
        done += count
        state = JobState("checksum", "checksum", "running", done, total)
        progress(progress_of(state, since, 0, time.monotonic()))

    return told


def _layer(copy: Copy, digest: Digest, *, compressed: bool) -> BackupLayer:
    return BackupLayer(
        file=copy.file,
        checksum=digest.checksum,
        length=digest.length,
        virtual_size=copy.size,
        parent=copy.parent,
        why=copy.why,
        bitmap=copy.bitmap,
        compressed=compressed,
    )
