"""Taking out of the store what nobody needs; in doubt it stays, and it is said why.  Blocking.

Everything here is called with the store's lock held.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from qmpkit.errors import ImageInUse
from qmpkit.images.store import index
from qmpkit.images.store.index import Image
from qmpkit.images.store.layout import Layout
from qmpkit.images.store.needs import Content, Needs, needs_of
from qmpkit.images.store.uses import note
from qmpkit.process.durable import DRAFT

__all__ = ["GcReport", "Kept", "collect", "remove"]

_CURE = "remove what is on it first; if that was deleted and not moved, say gone (--gone)"


@attrs.frozen
class Kept:
    """An image that stays, and why."""

    image: Image
    why: tuple[str, ...]


@attrs.frozen
class GcReport:
    """What `Store.gc` has done: files `removed`, bytes `freed`, images `kept` and why."""

    removed: tuple[Path, ...]
    freed: int
    kept: tuple[Kept, ...]


def remove(layout: Layout, name: str, *, gone: bool, look_in: Sequence[Path] = ()) -> Image:
    """Take the image *name* out of the store; `ImageInUse` when something needs it, OSError."""
    image = index.find(layout, name)
    needs = needs_of(layout, [image], gone=gone, look_in=look_in)
    _remember(layout, needs)
    if why := needs.of(image):
        raise ImageInUse(str(image.path), "remove", "; ".join(why), _CURE)
    index.forget(layout, image.digest, image.path)
    return image


def collect(layout: Layout, *, gone: bool, dry_run: bool, look_in: Sequence[Path] = ()) -> GcReport:
    """Remove what has no name and is needed by nothing, and what crashes have left; OSError."""
    images, orphans = index.images(layout), list(_orphans(layout))
    needs = needs_of(layout, [*images, *orphans], gone=gone, look_in=look_in)
    kept, idle = [], []
    for image in images:
        called = [f"it is called {name}" for name in image.names]
        if why := called or needs.of(image):
            kept.append(Kept(image, tuple(why)))
        else:
            idle.append(image)
    unneeded: list[Content] = [*idle, *(each for each in orphans if not needs.of(each))]
    paths = [*(each.path for each in unneeded), *_leftovers(layout)]
    sizes = {path: _taken(path) for path in paths}
    if not dry_run:
        _remember(layout, needs)
        for each in unneeded:
            index.forget(layout, each.digest, each.path)
        _remove(layout, needs, sizes)
    return GcReport(tuple(sizes), sum(sizes.values()), tuple(kept))


def _remember(layout: Layout, needs: Needs) -> None:
    """Note the overlays that were found: the next time they are known wherever one looks."""
    for digest, overlay in needs.found:
        if os.path.lexists(layout.record(digest)):
            note(layout, digest, overlay)


def _remove(layout: Layout, needs: Needs, sizes: dict[Path, int]) -> None:
    for entry in needs.idle:
        entry.unlink(missing_ok=True)
    for path in list(sizes):
        if path.parent != layout.partial:
            path.unlink(missing_ok=True)
        elif not _removed_partial(path):
            del sizes[path]


@attrs.frozen
class _Orphan:
    """An image without a record: from before that was written, or after it went."""

    digest: str
    path: Path


def _orphans(layout: Layout) -> Iterator[_Orphan]:
    for path in _listed(layout.blobs):
        if not os.path.lexists(layout.record(path.stem)):  # one that is not understood counts
            yield _Orphan(path.stem, path)


def _leftovers(layout: Layout) -> Iterator[Path]:
    """What crashes and cancellations leave: drafts of what is known, and pulls."""
    for folder in (layout.records, layout.names, *_folders(layout.uses)):
        yield from (path for path in _listed(folder) if path.name.endswith(DRAFT))
    for path in _folders(layout.partial):
        if not _busy(path):
            yield path


def _listed(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return sorted(folder.iterdir())
    return []


def _folders(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.is_dir()]


def _taken(path: Path) -> int:
    """Bytes that it takes on the disk."""
    total = 0
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        with suppress(FileNotFoundError):
            total += each.lstat().st_blocks * 512
    return total


def _busy(folder: Path) -> bool:
    lock = _locked(folder)
    if lock is not None:
        os.close(lock)
    return lock is None


def _removed_partial(folder: Path) -> bool:
    """Remove what is left of a pull; False when somebody has begun to go on with it."""
    lock = _locked(folder)
    if lock is None:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
    return True


def _locked(folder: Path) -> int | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(folder, flags)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
