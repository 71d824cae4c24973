"""A folder of backups: its manifest, and who works in it.

A point is there when the manifest names it, and not before.  What a program that died has
left is known by its name, and goes when the next one that may change the folder comes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from qmpkit.backups.private_folder import cleared_folder
from qmpkit.errors import Fault, ImageInUse, SpecInvalid
from qmpkit.host.headers import read_header
from qmpkit.images.drafts import StrPath
from qmpkit.images.tool import Asked
from qmpkit.process.durable import DRAFT, draft, publish, sync
from qmpkit.spec.backups import (
    BackupLayer,
    BackupManifest,
    Merged,
    files_of,
    is_any_layer_file,
    is_layer_file,
    manifest_from_json,
    manifest_to_json,
)

__all__ = ["MANIFEST", "MOMENT", "Repository", "draft_of", "repository", "with_merged"]

MANIFEST = "manifest.json"
"""The file in the folder that says what is in it."""

MOMENT = ".moment"
"""The folder in it that holds the disks' moment while a backup is compared with them."""

_MODE = 0o700  # backups show whatever the guest has written
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)


def draft_of(file: Path) -> Path:
    """Where a layer is while it is written."""
    return file.with_name(file.name + DRAFT)


@attrs.define
class Repository:
    """A folder of backups that is held: others may read it only while we only read it."""

    folder: Path
    manifest: BackupManifest
    asked: Asked

    def path(self, file: str) -> Path:
        """Where one of its files is."""
        return self.folder / file

    async def write(self, manifest: BackupManifest) -> None:
        """Have this manifest in place of the one before, safe on disk; ImageFailed, OSError's."""
        await self.seal(manifest, ())

    async def seal(self, manifest: BackupManifest, drafts: Sequence[Path]) -> None:
        """Put layers that were drafted in their places, and then *manifest*, all or nothing.

        *drafts*: their places.  Not cancelled in the middle, and no checkpoint after.
        """
        try:
            await trio.to_thread.run_sync(_seal, self.folder, manifest_to_json(manifest), drafts)
        except OSError as error:
            raise self.asked.failed_by(error) from error
        self.manifest = manifest

    async def without(self, numbers: Iterable[int]) -> None:
        """Forget these points, and remove the files that no other needs."""
        gone = set(numbers)
        points = tuple(point for point in self.manifest.points if point.number not in gone)
        obsolete = files_of(self.manifest.points) - files_of(points)
        await self.write(attrs.evolve(self.manifest, points=points))
        await trio.to_thread.run_sync(_remove, [self.path(file) for file in obsolete])


@asynccontextmanager
async def repository(
    folder: StrPath,
    *,
    doing: str,
    change: bool = False,
    new_of: str | None = None,
    lock: bool = True,
) -> AsyncIterator[Repository]:
    """Hold the folder of backups.

    *doing*: for messages.  *change*: what is in it may be changed, so nobody else is let in
    meanwhile; debris goes.  *new_of*: make it for the machine of that name when it is not
    there, and be sure that it is of that machine.  Without *lock* only the manifest is to be
    looked at, for others may be at work there.

    Raises `ImageInUse` when another is at work there, `SpecInvalid` when it is no folder of
    backups or of another machine, `ImageFailed` for what the file system refuses.
    """
    asked = Asked.of(doing, folder)
    held = _Held(asked)
    try:
        found = await trio.to_thread.run_sync(
            partial(held.open, change=change, new_of=new_of, lock=lock)
        )
        yield Repository(asked.path, found, asked)
    finally:
        with trio.CancelScope(shield=True):  # two system calls
            await trio.to_thread.run_sync(held.close)


class _Held:
    """The lock on the folder.  All of it blocks."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._fd = -1
        self._made = False
        self._begun = False

    def open(self, *, change: bool, new_of: str | None, lock: bool) -> BackupManifest:
        try:
            return self._open(change=change, new_of=new_of, lock=lock)
        except OSError as error:
            raise self._asked.failed_by(error) from error

    def _open(self, *, change: bool, new_of: str | None, lock: bool) -> BackupManifest:
        folder = self._asked.path
        if new_of is not None:
            _refuse_bytes(folder)
        if new_of is not None and not os.path.lexists(folder):
            folder.mkdir(mode=_MODE)
            self._made = True
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if lock:
            self._lock(fcntl.LOCK_EX if change else fcntl.LOCK_SH)
        written = _read(folder, new_of)
        if new_of is not None and not (folder / MANIFEST).exists():
            # Its id is to be known before there is any layer: debris is found by it.
            _seal(folder, manifest_to_json(written), ())
            self._begun = True
        manifest = _settled(folder, written)
        if change:
            _sweep(folder, manifest)
            if manifest is not written:
                _seal(folder, manifest_to_json(manifest), ())
        return manifest

    def _lock(self, how: int) -> None:
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            why = "another backup, prune, restore or verification is at work there"
            path, doing = str(self._asked.path), self._asked.doing
            raise ImageInUse(path, doing, why, "wait for its end") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # of some network file systems
                raise

    def close(self) -> None:
        if self._begun:
            with suppress(OSError, SpecInvalid):
                if not _read(self._asked.path, None).points:
                    (self._asked.path / MANIFEST).unlink()
        if self._made:
            with suppress(OSError):  # there is something in it: it stays
                self._asked.path.rmdir()
        if self._fd >= 0:
            os.close(self._fd)


def _read(folder: Path, new_of: str | None) -> BackupManifest:
    path = folder / MANIFEST
    try:
        text = _text(path)
    except FileNotFoundError:
        if new_of is None:
            hint = "name the folder that `vm.backups.run` was given"
            raise SpecInvalid([Fault("", f"there is no {MANIFEST}", hint)], str(folder)) from None
        _refuse_lost(folder)
        return BackupManifest(id=secrets.token_hex(4), machine=new_of)
    except UnicodeDecodeError:
        raise SpecInvalid([Fault("", "this is not UTF-8")], str(path)) from None
    manifest = manifest_from_json(text, str(path))
    if new_of is not None and manifest.machine != new_of:
        message = f"these are backups of {manifest.machine!r}, not of {new_of!r}"
        raise SpecInvalid([Fault("folder", message, "take another folder")], str(folder))
    return manifest


def _text(path: Path) -> str:
    # Non-blocking: opening a FIFO would wait for a writer for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        return file.read().decode()


def _refuse_bytes(folder: Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        fault = Fault("folder", "its path is not UTF-8, and QEMU takes no other")
        raise SpecInvalid([fault], repr(str(folder))) from None


def _refuse_lost(folder: Path) -> None:
    """Layers without a manifest are backups that would be forgotten."""
    lost = sorted(filter(is_any_layer_file, os.listdir(folder)))  # noqa: PTH208
    if lost:
        message = f"there is no {MANIFEST}, and {len(lost)} layers of backups, as {lost[0]}"
        hint = f"put {MANIFEST} back from a copy of the folder, or take another folder"
        raise SpecInvalid([Fault("", message, hint)], str(folder))


def _sweep(folder: Path, manifest: BackupManifest) -> None:
    """Remove what was never finished, or not needed any more when its program died."""
    needed = files_of(manifest.points)
    for name in os.listdir(folder):  # noqa: PTH208
        layer = name.removesuffix(DRAFT)
        if name not in needed and is_layer_file(layer, manifest.id):
            (folder / name).unlink(missing_ok=True)
    cleared_folder(folder / MOMENT)


def _settled(folder: Path, manifest: BackupManifest) -> BackupManifest:
    """*manifest* with the layers as they are, when a prune died while it replaced one."""
    if not any(layer.merged for point in manifest.points for layer in point.disks.values()):
        return manifest
    points = (
        attrs.evolve(point, disks={disk: _now(folder, it) for disk, it in point.disks.items()})
        for point in manifest.points
    )
    return attrs.evolve(manifest, points=tuple(points))


def _now(folder: Path, layer: BackupLayer) -> BackupLayer:
    """*layer* as its file is: whether the one that was to replace it has done so."""
    if layer.merged is None:
        return layer
    backing = ""
    with suppress(FileNotFoundError):
        backing = read_header(folder / layer.file).backing
    parent = Path(backing).name if backing else None
    if parent == layer.merged.parent:
        return with_merged(layer, layer.merged)
    return attrs.evolve(layer, merged=None)


def with_merged(layer: BackupLayer, merged: Merged) -> BackupLayer:
    """*layer* once its file is the merged one."""
    return attrs.evolve(
        layer,
        checksum=merged.checksum,
        length=merged.length,
        parent=merged.parent,
        merged=None,
    )


def _seal(folder: Path, text: str, layers: Sequence[Path]) -> None:
    path = folder / MANIFEST
    draft(draft_of(path), text)
    placed: list[Path] = []
    try:
        for layer in layers:
            if os.path.lexists(layer):
                raise FileExistsError(errno.EEXIST, f"{layer.name} is there already")
            draft_of(layer).rename(layer)
            placed.append(layer)
        if placed:
            sync(folder)  # their names before the one that names them
        publish(path, text)
    except OSError:
        for layer in (*placed, draft_of(path)):
            with suppress(OSError):
                layer.unlink()
        raise
    sync(folder)


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(FileNotFoundError):
            file.unlink()
