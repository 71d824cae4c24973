"""New disk images through qemu-img: whole or not at all, and never over an existing file."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit.errors import ImageFailed, ImageInUse
from qmpkit.host.holders import image_locked, processes_with
from qmpkit.host.tools import qemu_img
from qmpkit.process.tools import run
from qmpkit.spec.sizes import to_bytes

__all__ = ["Placed", "create", "overlay", "place_empty", "place_overlay"]

# Removing a file is one system call; the bound is for a file system that hangs.
_CLEANUP_GRACE = 5.0
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)

StrPath = str | os.PathLike[str]


@attrs.frozen
class Placed:
    """A new image, and what tells whether it is still as it was made."""

    path: Path
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Placed:
        """The image at *path* as it is now; blocking, raises OSError."""
        found = path.lstat()
        return cls(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


async def create(path: StrPath, size: int | str, format: str) -> Path:
    """Make an empty image of *size* ("10GiB" or bytes) at *path*; gives back its absolute path.

    *format* is QEMU's name (`qcow2`, `raw`, …).  The image is written beside its
    place under a temporary name and then linked into place, so *path* is never
    half an image.  `ImageFailed` when *path* exists or qemu-img fails,
    `BinaryMissing` without qemu-img.  Cancelled or failed, nothing is left.
    """
    return (await place_empty(path, size, format)).path


async def overlay(path: StrPath, base: StrPath, base_format: str, format: str = "qcow2") -> Path:
    """Make an image at *path* that holds only what differs from *base*, in the base's size.

    A base in the same directory is recorded by its name, so the two can be moved
    together; any other by its absolute path.  As `create` otherwise; `ImageInUse`
    when a running QEMU writes to *base*, which would corrupt the overlay.
    """
    return (await place_overlay(path, base, base_format, format)).path


async def place_empty(path: StrPath, size: int | str, format: str) -> Placed:
    """`create`, for a caller that may have to take the image away again.

    There is no checkpoint between the image's appearance and the return.
    """
    length = to_bytes(size)
    async with _new_file(path) as new:
        await _qemu_img(new.target, ["-f", format, "--", str(new.draft), str(length)])
    return new.placed()


async def place_overlay(path: StrPath, base: StrPath, base_format: str, format: str) -> Placed:
    """`overlay`, in the way of `place_empty`."""
    origin = await trio.to_thread.run_sync(_check_base, Path(base))
    async with _new_file(path) as new:
        # With ./ in front, a colon in the name is not taken for a protocol.
        beside = origin.parent == new.target.parent
        recorded = f"./{origin.name}" if beside else str(origin)
        words = ["-f", format, "-F", base_format, "-b", recorded, "--", str(new.draft)]
        await _qemu_img(new.target, words)
    return new.placed()


def _check_base(base: Path) -> Path:
    origin = base.absolute()
    # qemu-img does not look at the base's locks when it makes an overlay.
    try:
        locked = image_locked(origin, for_writing=False)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageFailed(str(origin), "make an overlay of", reason) from error
    if locked:
        holders = processes_with(str(origin)) or ["another process"]
        raise ImageInUse(
            str(origin),
            "make an overlay of",
            f"{', '.join(holders)} writes to it",
            "stop that machine first, or make the overlay with the running machine's snapshots",
        )
    return origin


async def _qemu_img(target: Path, words: Sequence[str]) -> None:
    tool = await trio.to_thread.run_sync(qemu_img)
    done = await run([tool, "create", "-q", *words], name="qemu-img")
    if not done.status.success:
        said = done.err.strip() or f"qemu-img ended with {done.status}"
        raise ImageFailed(str(target), "create", said)


@attrs.define
class _NewFile:
    target: Path
    draft: Path
    _placed: Placed | None = None

    def publish(self) -> None:
        try:
            _place(self.draft, self.target)
            self._placed = Placed.of(self.target)
        except FileExistsError as error:
            raise _exists(self.target) from error
        except OSError as error:
            raise ImageFailed(str(self.target), "create", error.strerror or str(error)) from error

    def remove_draft(self) -> None:
        self.draft.unlink(missing_ok=True)

    def placed(self) -> Placed:
        assert self._placed is not None, "the block ended well"
        return self._placed


@asynccontextmanager
async def _new_file(path: StrPath) -> AsyncIterator[_NewFile]:
    """A name beside *path* to write to; put in its place when the block ends well."""
    target = await trio.to_thread.run_sync(_free_place, Path(path))
    # Short, because *path* may have the longest name the file system takes.
    new = _NewFile(target, target.with_name(f".qk-{secrets.token_hex(6)}.tmp"))
    try:
        yield new
        await trio.to_thread.run_sync(new.publish)
    finally:
        with trio.move_on_after(_CLEANUP_GRACE, shield=True):
            await trio.to_thread.run_sync(new.remove_draft, abandon_on_cancel=True)


def _free_place(path: Path) -> Path:
    target = path.absolute()
    # The link below decides; this only spares the work, and names the folder that is missing.
    if os.path.lexists(target):
        raise _exists(target)
    if not target.parent.is_dir():
        folder = str(target.parent)
        raise ImageFailed(str(target), "create", f"there is no directory {folder!r}", "create it")
    return target


def _exists(target: Path) -> ImageFailed:
    cure = "choose another name, or remove it first"
    return ImageFailed(str(target), "create", "it exists already", cure)


def _place(draft: Path, target: Path) -> None:
    """Give *draft* the name *target*, which must be free."""
    try:
        os.link(draft, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # FAT and some network file systems: reserve the name, then replace our own reservation.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        draft.rename(target)
