"""New files that are whole or not there: written without a name, then linked into place.

A file opened with O_TMPFILE has no name, so nothing is left of it when this program,
the spawner or the host is killed.  qemu-img reaches it as a descriptor.  Where the file
system cannot do that (NFS, FAT), or where the format writes its own name into the image,
the draft is in a hidden directory beside its place: what a killed program leaves of
that, the next one removes that drafts there in this way.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs
import trio

from qmpkit.errors import ImageFailed
from qmpkit.images.replacing import Replaced
from qmpkit.images.tool import Asked
from qmpkit.process.held_dirs import hold_new_dir, sweep

__all__ = ["Draft", "Placed", "StrPath", "new_image"]

# Removing a file is one system call; the bound is for a file system that hangs.
_CLEANUP_GRACE = 5.0
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_CHILD_FD = 3
_FORMATS_WITH_NAMES = ("vmdk",)  # its descriptor names the file it is in
_HIDDEN = re.compile(r"\.qk-[0-9a-f]{12}\.tmp")
_MODE = 0o644  # less the umask: what qemu-img gives its files

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


class _Store(Protocol):
    """Where a draft is until it is published.  All of it blocks and raises OSError."""

    path: str
    """What qemu-img is told."""

    fds: Mapping[int, int]
    """What it inherits for that."""

    def publish(self, target: Path, replaced: Replaced | None) -> None:
        """Give the draft the name *target*, once its content is safe on disk."""

    def discard(self) -> None:
        """Remove what there is of the draft."""


class _Unnamed:
    def __init__(self, folder: Path, child_fd: int) -> None:
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fd = -1
        try:
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            self._fd = os.open(".", flags, _MODE, dir_fd=self._folder)
            self._itself = f"/proc/self/fd/{self._fd}"
            Path(self._itself).stat()  # without /proc there is no way to give it a name
        except OSError:
            self.discard()
            raise
        self.path = f"/proc/self/fd/{child_fd}"
        self.fds: Mapping[int, int] = {child_fd: self._fd}

    def publish(self, target: Path, replaced: Replaced | None) -> None:
        # Not fsync: where qemu-img has flushed already, this costs no second journal commit.
        os.fdatasync(self._fd)
        if replaced is None:
            self._link(target.name)
            return
        replaced.hand_on(self._fd)
        # No system call links over an existing name.
        meanwhile = _hidden_name()
        self._link(meanwhile)
        try:
            replaced.check()
            os.rename(meanwhile, target.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(meanwhile, dir_fd=self._folder)
            raise

    def _link(self, name: str) -> None:
        # Given a directory, even to an absolute source, Python follows the link that /proc has.
        os.link(self._itself, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def discard(self) -> None:
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)


class _Named:
    fds: Mapping[int, int] = {}

    def __init__(self, target: Path) -> None:
        with suppress(OSError):  # a directory that may be written, but not read
            sweep(target.parent, _HIDDEN)
        self._folder = hold_new_dir(target.parent, _hidden_name)
        self._file = self._folder.path / target.name
        self.path = str(self._file)

    def publish(self, target: Path, replaced: Replaced | None) -> None:
        _sync(self._file, os.fdatasync)
        if replaced is None:
            _place(self._file, target)
            return
        _sync(self._file, replaced.hand_on)
        replaced.check()
        self._file.rename(target)

    def discard(self) -> None:
        self._folder.remove()


def _hidden_name() -> str:
    # Short, because the target may have the longest name that the file system takes.
    return f".qk-{secrets.token_hex(6)}.tmp"


def _sync(path: Path, how: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        how(fd)
    finally:
        os.close(fd)


def _place(draft: Path, target: Path) -> None:
    """Give *draft* the name *target*, which must be free; blocking, raises OSError."""
    try:
        os.link(draft, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # FAT and some network file systems: reserve the name, then replace our own reservation.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        draft.rename(target)


@attrs.define
class Draft:
    """An image that is being made: what qemu-img writes to, and what comes of it."""

    target: Path
    asked: Asked
    _store: _Store
    _replaced: Replaced | None
    _lasting: bool
    _placed: Placed | None = None

    @property
    def path(self) -> str:
        """What qemu-img is told; relative names in the image do not lead anywhere from there."""
        return self._store.path

    @property
    def fds(self) -> Mapping[int, int]:
        """The descriptors that qemu-img must inherit."""
        return self._store.fds

    def placed(self) -> Placed:
        """The finished image, after the block."""
        assert self._placed is not None, "the block ended well"
        return self._placed

    def _publish(self) -> None:
        try:
            self._store.publish(self.target, self._replaced)
            if self._lasting:  # fdatasync would leave out a directory's new entry
                _sync(self.target.parent, os.fsync)
            self._placed = Placed.of(self.target)
        except FileExistsError as error:
            raise _exists(self.asked) from error
        except OSError as error:
            raise self.asked.failed_by(error) from error
        self._discard()

    def _discard(self) -> None:
        with suppress(OSError):  # the image is in its place, or not, whatever remains beside it
            self._store.discard()
        if self._replaced is not None:
            self._replaced.release()


@asynccontextmanager
async def new_image(
    path: StrPath,
    format: str,
    *,
    doing: str = "create",
    replace: bool = False,
    private: bool = False,
    lasting: bool = False,
    child_fd: int = _CHILD_FD,
) -> AsyncIterator[Draft]:
    """A draft of the image *path*, in its place once the block has ended well.

    Its content is safe on disk before it has its name, so a power cut leaves all of it
    or what was there; with *lasting* the name is safe too, for content that cannot be
    made again.  With *replace* it takes the place of the file there in one step, with
    its mode, and where that may be with its owner and group; else that is an error.  No
    QEMU can open that file for writing meanwhile.  *private*: the mode is 0600 then, and
    who reads the old one may go on.  *child_fd*: the descriptor by which qemu-img has it.
    There is no checkpoint between the image's appearance and the end.
    Raises `ImageFailed`, `ImageInUse`; failed or cancelled, the target is as it was.
    """
    begin = partial(
        _begin,
        Path(path),
        format,
        doing,
        replace=replace,
        private=private,
        lasting=lasting,
        child_fd=child_fd,
    )
    draft = await trio.to_thread.run_sync(begin)
    try:
        yield draft
        await trio.to_thread.run_sync(draft._publish)
    finally:
        if draft._placed is None:
            with trio.move_on_after(_CLEANUP_GRACE, shield=True):
                await trio.to_thread.run_sync(draft._discard, abandon_on_cancel=True)


def _begin(
    path: Path,
    format: str,
    doing: str,
    *,
    replace: bool,
    private: bool,
    lasting: bool,
    child_fd: int,
) -> Draft:
    asked = Asked.of(doing, path)
    replaced = None
    try:
        target = _place_for(asked, replace=replace)
        if os.path.lexists(target):
            replaced = Replaced.held(Asked(doing, target), target, private=private)
        store = _store(target, format, child_fd)
    except BaseException as error:
        if replaced is not None:
            replaced.release()
        if isinstance(error, OSError):
            raise asked.failed_by(error) from error
        raise
    return Draft(target, Asked(doing, target, store.path), store, replaced, lasting)


def _place_for(asked: Asked, *, replace: bool) -> Path:
    """Where the file can be made, absolute; `ImageFailed` or OSError if it cannot be there.

    Publishing decides; this only spares the work, and names the folder that is missing.  The
    cause is what the kernel would say, by which a caller tells a wrong name from a full disk.
    """
    # A link stays: what it leads to is replaced.
    target = _end_of_links(asked.path) if replace else asked.path
    if os.path.lexists(target) and not (replace and target.is_file()):
        taken = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        raise _exists(asked, replace=replace) from taken
    if not target.parent.is_dir():
        folder = str(target.parent)
        none = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
        raise asked.failed(f"there is no directory {folder!r}", "create it") from none
    return target


def _end_of_links(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # Python's answer to a circle, before 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _store(target: Path, format: str, child_fd: int) -> _Store:
    if format not in _FORMATS_WITH_NAMES:
        try:
            return _Unnamed(target.parent, child_fd)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
    return _Named(target)


def _exists(asked: Asked, *, replace: bool = False) -> ImageFailed:
    if replace:
        return asked.failed("it is no regular file", "choose another name")
    return asked.failed("it exists already", "choose another name, or remove it first")
