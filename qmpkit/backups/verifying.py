"""Whether backups are what they were: every layer's checksum, and what it stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import attrs
import trio

from qmpkit.backups.repository import Repository, repository
from qmpkit.errors import ImageFailed
from qmpkit.host.headers import read_header
from qmpkit.images.drafts import StrPath
from qmpkit.images.hashing import digest_of
from qmpkit.images.in_use import checked_chain
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.tools import Completed
from qmpkit.spec.backups import (
    BackupLayer,
    BackupManifest,
    BackupPoint,
    layers_below,
    point_of,
    point_with,
)

__all__ = ["Flaw", "Told", "compare", "flaws_of", "points", "refused", "verify"]

Told = Callable[[float], object]
"""Is told how much is done, 0.0 to 1.0; must not block."""


@attrs.frozen
class Flaw:
    """What is wrong with a file of the backups, and the numbers of the points that need it."""

    file: str
    what: str
    points: tuple[int, ...]

    def __str__(self) -> str:
        needed = ", ".join(map(str, self.points))
        return f"{self.file}: {self.what} (needed by {needed})"


async def points(folder: StrPath) -> tuple[BackupPoint, ...]:
    """The points in *folder*, the oldest first, also while a backup or a prune is at work there.

    Raises SpecInvalid when it holds no backups.
    """
    async with repository(folder, doing="read the backups in", lock=False) as place:
        return place.manifest.points


async def verify(
    folder: StrPath, *, point: int | None = None, progress: Told | None = None
) -> tuple[Flaw, ...]:
    """Read all layers, or those that *point* needs, and tell which are not what they were.

    Empty when all is well.  As fast as the disk, for a checksum of every byte.
    Raises SpecInvalid when there is no such point, ImageInUse while a backup runs there,
    ImageFailed when a file cannot be read.
    """
    async with repository(folder, doing="verify the backups in") as place:
        chosen = place.manifest.points
        if point is not None:
            chosen = (point_with(chosen, point),)
        return await flaws_of(place, chosen, progress)


async def flaws_of(
    place: Repository, points: Iterable[BackupPoint], progress: Told | None = None
) -> tuple[Flaw, ...]:
    """What is wrong with the layers that these points need."""
    needed = _needed(place.manifest, points)
    total = sum(layer.length for layer, _ in needed.values()) or 1
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done / total, 1.0))

    found: list[Flaw] = []
    for layer, numbers in needed.values():
        if what := await _flaw(place, layer, read):
            found.append(Flaw(layer.file, what, tuple(sorted(numbers))))
    return tuple(found)


def _needed(
    manifest: BackupManifest, points: Iterable[BackupPoint]
) -> dict[str, tuple[BackupLayer, set[int]]]:
    needed: dict[str, tuple[BackupLayer, set[int]]] = {}
    for point in points:
        for layer in point.disks.values():
            for below in layers_below(manifest, layer):
                needed.setdefault(below.file, (below, set()))[1].add(point.number)
    return needed


async def _flaw(place: Repository, layer: BackupLayer, read: Callable[[int], object]) -> str:
    path = place.path(layer.file)
    asked = Asked("read", path)
    try:
        header = await trio.to_thread.run_sync(read_header, path)
        algorithm = layer.checksum.partition(":")[0]
        digest = await digest_of(path, asked, read, safe=False, algorithm=algorithm)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        raise asked.failed_by(error) from error
    if digest.length != layer.length:
        return f"it has {digest.length} bytes instead of {layer.length}"
    if digest.checksum != layer.checksum:
        return "its checksum is another one: its content has changed"
    if header.data_file:
        return f"its content is in {header.data_file}"
    # By the name alone: a file of that name elsewhere is none of these.
    parent = header.backing.removeprefix("./") or None
    if parent != layer.parent:
        return f"it stands on {parent or 'nothing'}, not on {layer.parent or 'nothing'}"
    return ""


async def compare(
    folder: StrPath, disk: str, image: StrPath, *, format: str, point: int | None = None
) -> bool:
    """Whether *image*, which no machine writes to, shows what *disk* had at *point* (newest).

    By `qemu-img compare`: what a guest would read, byte for byte; where one is longer, zeros.
    """
    async with repository(folder, doing="compare with the backups in") as place:
        layer = point_of(place.manifest, point, disk).disks[disk]
        asked = Asked("compare", place.path(layer.file))
        other = Asked.of("compare", image)
        images = 0
        for one, its in ((asked, "qcow2"), (other, format)):
            allowed = [place.folder] if one is asked else None
            look = partial(checked_chain, one, its, allowed)
            images += len((await trio.to_thread.run_sync(look)).layers)
        words = ["compare", "-f", "qcow2", "-F", format, "--"]
        done = await run_qemu_img(
            [*words, str(asked.path), str(other.path)],
            asked,
            limits_of_chain(images),
            well=_compared,
            opens=[other.path],
        )
        return done.status.success


def _compared(done: Completed) -> bool:
    return done.status.code in (0, 1)


def refused(place: Repository, flaws: Iterable[Flaw], doing: str) -> ImageFailed:
    """The error for what cannot be done since layers are not what they were."""
    found = list(flaws)
    said = "; ".join(f"{flaw.file}: {flaw.what}" for flaw in found)
    needed = _needed(place.manifest, place.manifest.points)
    bad = {number for flaw in found for number in needed[flaw.file][1]}
    sound = [point.number for point in place.manifest.points if point.number not in bad]
    cure = "put the file back from a copy of the folder"
    if sound:
        cure += f", or take point {max(sound)}"
    return ImageFailed(str(place.path(found[0].file)), doing, said, cure)
