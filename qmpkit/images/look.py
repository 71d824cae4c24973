"""A first look at somebody's disk image: what it is, and how it wants to be booted."""

from __future__ import annotations

import difflib
import os
import stat
from functools import partial
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.headers import read_header
from qmpkit.images.boot import LOOK_AT, BootSigns, boot_signs
from qmpkit.images.details import ImageInfo, info
from qmpkit.images.guessed import taken_format
from qmpkit.images.in_use import Allowed, sound_chain
from qmpkit.images.tool import INFO_LIMITS, Asked, run_qemu_img
from qmpkit.process.spawner import shared_spawner

__all__ = ["Looked", "first_bytes", "image_fault", "look_at", "usable_format"]

StrPath = str | os.PathLike[str]

_CHILD_FD = 3
_UNPACKERS = {
    "gzip": "gunzip --keep",
    "bzip2": "bunzip2 --keep",
    "xz": "unxz --keep",
    "zstd": "unzstd",
    "zip": "unzip",
}


@attrs.frozen
class Looked:
    """An image that a machine can be made around.

    `path`: absolute; `format`: QEMU's name; `info`: what qemu-img says of it;
    `boot`: what its first sectors promise.
    """

    path: Path
    format: str
    info: ImageInfo
    boot: BootSigns

    @property
    def is_cd(self) -> bool:
        """Whether it is a CD's image (.iso), which is only read."""
        return self.boot.iso and self.format == "raw"


async def look_at(
    path: StrPath, *, format: str | None = None, option: str = "", allowed: Allowed = None
) -> Looked:
    """Find out what the image at *path* is; nothing is written, it may be in use.

    *format* states its format; None takes it from the header, where no magic means
    raw, and has it confirmed by qemu-img.  *option* is how a user states it, for the
    error.  *allowed*: folders in which all files must be that it names, None for any.
    Runs qemu-img twice (about 25 ms), for a raw image once.

    Raises `SpecInvalid` when there is no such image or it is something else (a
    directory, compressed, encrypted), `ImageFailed` when it is damaged, when its chain
    is broken or leads out of this host's files, or when its format has to be stated
    (`taken_format`); `BinaryMissing` without qemu-img.
    """
    look = partial(_look, Path(path), format, option, allowed)
    image, stated = await trio.to_thread.run_sync(look)
    async with shared_spawner():
        told = await info(image, format=stated, allowed=allowed)
        if told.encrypted:
            why = "is encrypted, and only the spec of a machine can name its secret"
            cure = 'luks = "web.key" of a disk; or a plain copy: qmpkit image convert'
            raise SpecInvalid([Fault("", why, cure)], str(path))
        start = await first_bytes(image, told.format)
    return Looked(image, told.format, told, boot_signs(start))


async def first_bytes(path: Path, format: str, length: int = LOOK_AT) -> bytes:
    """The first *length* bytes that a guest would see on the disk at *path*.

    Works on an image in use.  They go through memory: no file is made.
    """
    if format == "raw":
        return await trio.to_thread.run_sync(_head, path, length)
    memory = os.memfd_create("qmpkit-sectors", os.MFD_CLOEXEC)
    try:
        words = ["dd", "-U", "-f", format, "-O", "raw", f"bs={length}", "count=1"]
        words += [f"if={path}", f"of=/proc/self/fd/{_CHILD_FD}"]
        asked = Asked("read the first sectors of", path)
        await run_qemu_img(words, asked, INFO_LIMITS, fds={_CHILD_FD: memory})
        return os.pread(memory, length, 0)
    finally:
        os.close(memory)


def _look(path: Path, format: str | None, option: str, allowed: Allowed) -> tuple[Path, str]:
    """Where the image is and its format, after every reason not to open it."""
    format = usable_format(path, format, option=option)
    asked = Asked.of("read", path)
    sound_chain(asked, format, allowed)
    return asked.path, format


def usable_format(path: Path, format: str | None, *, option: str = "") -> str:
    """The format of the image at *path*: as stated, else as its header says; blocking.

    Raises `SpecInvalid` when it is no image, `ImageFailed` when its format has to be
    stated, with *option*.
    """
    if (fault := image_fault(path)) is not None:
        raise SpecInvalid([fault], str(path))
    if format is not None:
        return format
    asked = Asked.of("read", path)
    try:
        return taken_format(asked, read_header(asked.path), option=option)
    except OSError as error:
        raise asked.failed_by(error) from error


def _head(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def image_fault(path: Path) -> Fault | None:
    """Why the file at *path* cannot be a disk image at all; blocking."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            what = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a disk"
            return Fault("", f"this is {what}, not a disk image")
        header = read_header(path)
    except FileNotFoundError:
        if path.is_symlink():
            return Fault("", f"this is a link to {str(path.readlink())!r}, which does not exist")
        return Fault("", "there is no such file", _similar(path))
    except OSError as error:
        return Fault("", f"cannot be read: {(error.strerror or str(error)).lower()}")
    if header.empty:
        return Fault("", "the file is empty, not a disk image")
    if unpack := _UNPACKERS.get(header.format):
        return Fault("", f"the image is compressed ({header.format})", f"{unpack} {path.name}")
    return None


def _similar(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=2, cutoff=0.75)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ""
