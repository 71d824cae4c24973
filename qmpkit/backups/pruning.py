"""Points that a policy does not keep go: what later ones need of them is merged into those.

A layer that takes in what is below it is written anew beside the one that is there, and put
in its place in one step; its readers see the same content before and after.  So a program
or host that dies at any moment leaves every point whole that the manifest names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from qmpkit.backups.repository import Repository, draft_of, repository, with_merged
from qmpkit.backups.verifying import flaws_of, refused
from qmpkit.images.drafts import StrPath
from qmpkit.images.hashing import copied, digest_of
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.durable import sync
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.backups import (
    BackupLayer,
    BackupManifest,
    BackupPoint,
    Merge,
    Merged,
    kept_points,
    layers_below,
    merges_for,
)

__all__ = ["Step", "prune"]

Step = Callable[[str], object]
"""Is told what is done next, in words; must not block."""

_CLEANUP_GRACE = 5.0


async def prune(
    folder: StrPath,
    *,
    keep_last: int = 0,
    daily: int = 0,
    weekly: int = 0,
    dry_run: bool = False,
    step: Step | None = None,
) -> tuple[BackupPoint, ...]:
    """Remove the points that the policy does not keep; those that are, or with *dry_run* would be.

    Kept are the newest *keep_last*, the newest of each of the last *daily* days and
    *weekly* weeks that have one (UTC, ISO weeks), and the newest in every case.  What a kept
    point needs of one that goes is merged into it: that takes the space of the merged layer
    once more, and before it the checksums of all that is read are compared.

    Cancelled, failed or killed, every point that is still listed is whole; call it again.
    Raises SpecInvalid for a policy that keeps nothing, ImageInUse while another is at work
    there, ImageFailed when a layer is not what it was or there is no space.
    """
    async with repository(folder, doing="prune the backups in", change=not dry_run) as place:
        points = place.manifest.points
        kept = kept_points(points, keep_last=keep_last, daily=daily, weekly=weekly)
        gone = tuple(point for point in points if point.number not in kept)
        if gone and not dry_run:
            async with shared_spawner():
                await _prune(place, kept, step)
    return gone


async def _prune(place: Repository, kept: frozenset[int], step: Step | None) -> None:
    before: set[int] = set()
    for number in [point.number for point in place.manifest.points]:
        if number not in kept:
            before.add(number)
        elif before:
            # The oldest first, and what is not needed any more at once: it needs the least space.
            for merge in merges_for(place.manifest, number, kept):
                if step is not None:
                    step(f"merge into {merge.layer.file}")
                await _merge(place, merge)
            await place.without(before)
            before.clear()


async def _merge(place: Repository, merge: Merge) -> None:
    await _refuse_flawed(place, merge)
    path = place.path(merge.layer.file)
    draft = draft_of(path)
    try:
        await _write_merged(place, merge, draft)
        digest = await digest_of(draft, place.asked, safe=True)
        merged = Merged(checksum=digest.checksum, length=digest.length, parent=merge.base)
        waiting = attrs.evolve(merge.layer, merged=merged)
        await place.write(_with_layer(place.manifest, waiting))
        await trio.to_thread.run_sync(_replace, place.asked, draft, path)
    except BaseException:
        with trio.move_on_after(_CLEANUP_GRACE, shield=True):
            await trio.to_thread.run_sync(_discard, draft, abandon_on_cancel=True)
        raise
    await place.write(_with_layer(place.manifest, with_merged(merge.layer, merged)))


async def _refuse_flawed(place: Repository, merge: Merge) -> None:
    """A bad layer must not go on in a good one's name."""
    point = BackupPoint(number=0, time=0.0, disks={merge.disk: merge.layer})
    if flaws := await flaws_of(place, [point]):
        raise refused(place, flaws, "prune the backups in")


async def _write_merged(place: Repository, merge: Merge, draft: Path) -> None:
    layer = merge.layer
    depth = len(layers_below(place.manifest, layer))
    asked = Asked("merge layers into", place.path(layer.file), str(draft))
    if merge.base is None:
        words = ["convert", "-f", "qcow2", "-O", "qcow2", *(["-c"] if layer.compressed else [])]
        words += ["--", str(asked.path), str(draft)]
    else:
        await copied(asked.path, draft, place.asked)
        words = ["rebase", "-f", "qcow2", "-F", "qcow2", "-b", f"./{merge.base}", "--", str(draft)]
    await run_qemu_img(words, asked, limits_of_chain(2 * depth))


def _replace(asked: Asked, draft: Path, path: Path) -> None:
    try:
        draft.replace(path)
        sync(path.parent)
    except OSError as error:
        raise asked.failed_by(error) from error


def _discard(draft: Path) -> None:
    draft.unlink(missing_ok=True)


def _with_layer(manifest: BackupManifest, layer: BackupLayer) -> BackupManifest:
    points = tuple(
        attrs.evolve(
            point,
            disks={
                disk: layer if known.file == layer.file else known
                for disk, known in point.disks.items()
            },
        )
        for point in manifest.points
    )
    return attrs.evolve(manifest, points=points)
