"""Backups of a machine that runs: all its disks at one moment, into a folder of layers.

One transaction starts the copies and, in the same moment, the bitmaps that record what
changes from then on.  The bitmap before it is removed when the manifest has the new point:
until then it can be tried again from where it was.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.backups.hashing import Digest, digest_of
from qmpkit.backups.repository import Repository, draft_of, repository
from qmpkit.errors import Fault, MachineDied, MachineGone, SpecInvalid
from qmpkit.images.new import place_backup
from qmpkit.machine.ledger import Change
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.backup_plan import Copy, Mode, dirty_bitmaps, planned, remove_bitmaps
from qmpkit.operations.block.graph import graph_of
from qmpkit.operations.block.layers import STEP_GRACE, Made, making
from qmpkit.operations.block.snapshots import Freeze
from qmpkit.operations.block.undertaking import undertaking
from qmpkit.operations.job_groups import job_group
from qmpkit.operations.jobs import JobState, Progress, progress_of
from qmpkit.qmp.errors import CommandRefused, MonitorGarbled, MonitorLost
from qmpkit.spec.backups import BackupLayer, BackupPoint, bitmaps_of
from qmpkit.spec.sizes import format_size

__all__ = ["let_go_on", "run_backup"]

_LOST = (MachineGone, MachineDied, MonitorLost, MonitorGarbled)


@attrs.frozen
class _Wanted:
    compress: bool
    speed: int
    freeze: Freeze | None
    progress: Progress | None


async def run_backup(
    machine: Changeable,
    folder: Path,
    *,
    mode: Mode = "auto",
    compress: bool = False,
    speed: int = 0,
    freeze: Freeze | None = None,
    progress: Progress | None = None,
) -> BackupPoint:
    """See `Backups.run`."""
    if speed < 0:
        fault = Fault("speed", f"counts from 0, not from {speed}")
        raise SpecInvalid([fault], f"machine {machine.name!r}")
    wanted = _Wanted(compress, speed, freeze, progress)
    held = repository(folder, doing="back up to", change=True, new_of=machine.name)
    async with held as place, machine.changing:
        copies = await _planned(machine, place, mode)
        if not compress:
            await trio.to_thread.run_sync(_refuse_full, place, copies)
        change = Change(
            what=f"back up to {place.folder}",
            spec=machine.spec,
            begun=machine.spec,
            jobs=tuple(copy.job for copy in copies),
            nodes=tuple(node for copy in copies for node in (copy.target, f"{copy.target}-file")),
            files=tuple(str(draft_of(place.path(copy.file))) for copy in copies),
            frozen=freeze is not None,
        )
        async with undertaking(machine, change), making(machine) as made:
            return await _carried_out(machine, place, copies, wanted, made)


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
    wanted: _Wanted,
    made: Made,
) -> BackupPoint:
    async with _new_bitmaps(machine, copies):
        for copy in copies:
            await _make_target(place, copy, made)
        when = await _copied(machine, copies, wanted)
        await _close(machine, copies)
        digests = await _digests(place, copies, wanted.progress)
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
    with trio.move_on_after(STEP_GRACE, shield=True), suppress(*_LOST):
        await remove_bitmaps(machine, manifest.id, bitmaps_of(point))
    return point


async def _close(machine: Changeable, copies: Sequence[Copy]) -> None:
    """The files are whole when QEMU has closed them: one that it does not close is no layer."""
    for copy in copies:
        for node in (copy.target, f"{copy.target}-file"):
            await machine.execute("blockdev-del", {"node-name": node})


async def _make_target(place: Repository, copy: Copy, made: Made) -> None:
    path = draft_of(place.path(copy.file))
    made.file(await place_backup(path, copy.parent, copy.size))
    # Unflushed: the file is synced once, while its checksum is computed.
    cache = {"cache": {"direct": False, "no-flush": True}}
    name = f"{copy.target}-file"
    lower = {"driver": "file", "node-name": name, "filename": str(path), **cache}
    # Without the layers below: whole clusters are written, and nothing of those is read.
    upper = {"driver": "qcow2", "node-name": copy.target, "file": name, **cache}
    await made.nodes(lower, {**upper, "backing": None} if copy.parent else upper)


@asynccontextmanager
async def _new_bitmaps(machine: Changeable, copies: Sequence[Copy]) -> AsyncIterator[None]:
    """The bitmaps that are added within do not outlive a failure."""
    try:
        yield
    except BaseException:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*_LOST):
            for copy in copies:
                if copy.bitmap is not None:
                    with suppress(CommandRefused):
                        words = {"node": copy.node, "name": copy.bitmap}
                        await machine.execute("block-dirty-bitmap-remove", words)
        raise


async def _copied(machine: Changeable, copies: Sequence[Copy], wanted: _Wanted) -> float:
    """Have QEMU copy, all from one moment on; that moment, in seconds since the epoch."""
    actions = [action for copy in copies for action in _actions(copy, wanted, len(copies))]
    ran = (await machine.execute("query-status"))["running"]
    ids = [copy.job for copy in copies]
    try:
        async with job_group(machine, ids, asked="back its disks up") as jobs:
            async with wanted.freeze() if wanted.freeze else nullcontext():
                await jobs.start(actions)
                when = time.time()
            async for state in jobs.progress():
                if wanted.progress is not None:
                    wanted.progress(state)
    except BaseException:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*_LOST):
            await let_go_on(machine, ran=ran)
        raise
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


async def let_go_on(machine: Changeable, *, ran: bool) -> None:
    """A full target stops a guest that writes, in the middle of its write; it is tried again."""
    if ran and (await machine.execute("query-status"))["status"] == "io-error":
        await machine.execute("cont")


async def _digests(
    place: Repository, copies: Sequence[Copy], progress: Progress | None
) -> list[Digest]:
    drafts = [draft_of(place.path(copy.file)) for copy in copies]
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
        sha256=digest.sha256,
        length=digest.length,
        virtual_size=copy.size,
        parent=copy.parent,
        why=copy.why,
        bitmap=copy.bitmap,
        compressed=compressed,
    )
