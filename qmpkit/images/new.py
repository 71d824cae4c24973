"""New disk images through qemu-img: whole or not at all, and never over an existing file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import trio

from qmpkit.host.chain import MAX_CHAIN
from qmpkit.images.details import info
from qmpkit.images.drafts import Placed, StrPath, new_image
from qmpkit.images.in_use import checked_chain, refuse_used
from qmpkit.images.tool import WRITE_LIMITS, Asked, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.spec.sizes import to_bytes

__all__ = ["create", "overlay", "place_backup", "place_empty", "place_layer", "place_overlay"]

Preallocation = Literal["metadata", "falloc", "full"]

_SECTOR = 512
_OVERLAYS = ("qcow2", "qed")
_CHECKED = ("raw", "qcow2")  # of others qemu-img makes some that it cannot open: a vmdk of 8 EiB
_SNAPSHOT_CURE = "stop that machine first, or make the overlay with the running machine's snapshots"


async def create(
    path: StrPath,
    size: int | str,
    format: str,
    *,
    preallocation: Preallocation | None = None,
    limits: Limits = WRITE_LIMITS,
) -> Path:
    """Make an empty image of *size* ("10GiB" or bytes) at *path*; gives back its absolute path.

    *format* is QEMU's name (`qcow2`, `raw`, …).  *preallocation*: "falloc" takes the disk
    space at once, "full" writes all of it, "metadata" (qcow2) only lays the tables out;
    None takes space as the guest writes.  The image gets its name only when it
    is whole and on disk, so *path* is never half an image, not even after a SIGKILL or a
    power cut.  Its mode is 0644 less the umask.  `ImageFailed` when *path* exists, qemu-img
    fails or meets one of *limits*, `BinaryMissing` without qemu-img.  Cancelled or
    failed, nothing is left.
    """
    placed = await place_empty(path, size, format, preallocation=preallocation, limits=limits)
    return placed.path


async def overlay(
    path: StrPath,
    base: StrPath,
    base_format: str,
    format: str = "qcow2",
    *,
    limits: Limits = WRITE_LIMITS,
) -> Path:
    """Make an image at *path* that holds only what differs from *base*, in the base's size.

    A base in the same directory is recorded by its name, so the two can be moved
    together; any other by its absolute path.  As `create` otherwise; *format* is
    qcow2 or qed.  `ImageInUse` when a running QEMU writes to *base* or to one of the
    images below it, which would corrupt the overlay.
    """
    return (await place_overlay(path, base, base_format, format, limits=limits)).path


async def place_empty(
    path: StrPath,
    size: int | str,
    format: str,
    *,
    preallocation: Preallocation | None = None,
    limits: Limits = WRITE_LIMITS,
) -> Placed:
    """`create`, for a caller that may have to take the image away again.

    There is no checkpoint between the image's appearance and the return.
    """
    length = to_bytes(size)
    async with new_image(path, format) as draft:
        options = [] if preallocation is None else ["-o", f"preallocation={preallocation}"]
        words = ["create", "-q", "-f", format, *options, "--", draft.path, str(length)]
        await run_qemu_img(words, draft.asked, limits, fds=draft.fds)
        if format not in _CHECKED:
            words = ["info", "-f", format, "--", draft.path]
            await run_qemu_img(words, draft.asked, limits, fds=draft.fds)
    return draft.placed()


async def place_overlay(
    path: StrPath,
    base: StrPath,
    base_format: str,
    format: str,
    *,
    limits: Limits = WRITE_LIMITS,
) -> Placed:
    """`overlay`, in the way of `place_empty`."""
    asked = Asked.of("make an overlay of", base)
    origin = asked.path
    size = await trio.to_thread.run_sync(_size_of_base, asked, base_format, format)
    if size is None:
        size = (await info(origin, format=base_format)).virtual_size
    async with new_image(path, format) as draft:
        recorded = _recorded(origin, draft.target)
        # -u: from the draft a name beside leads nowhere, and the base has been looked at.
        words = ["create", "-q", "-u", "-f", format, "-F", base_format, "-b", recorded]
        words += ["--", draft.path, str(size)]
        await run_qemu_img(words, draft.asked, limits, fds=draft.fds)
    return draft.placed()


def _size_of_base(asked: Asked, base_format: str, format: str) -> int | None:
    """Bytes that a guest sees of *base*, where its header tells; after every reason to refuse."""
    if format not in _OVERLAYS:
        raise asked.failed(f"{format} images have no base", 'format="qcow2"')
    # qemu-img does not look at the base's locks when it makes an overlay.
    refuse_used(asked, for_writing=False, cure=_SNAPSHOT_CURE)
    chain = checked_chain(asked, base_format)
    if len(chain.layers) == MAX_CHAIN:
        raise asked.failed(f"it would be deeper than {MAX_CHAIN} images", "use a base further down")
    header = chain.layers[0].header
    if base_format == "raw":
        return _raw_size(asked)
    if header.format != base_format:
        raise asked.failed(f"it is {header.format or 'raw'}, not {base_format}", "state its format")
    return header.size if base_format == "qcow2" else None


def _raw_size(asked: Asked) -> int:
    try:
        fd = os.open(asked.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return -(-os.lseek(fd, 0, os.SEEK_END) // _SECTOR) * _SECTOR  # block devices too
        finally:
            os.close(fd)
    except OSError as error:
        raise asked.failed_by(error) from error


async def place_layer(path: StrPath, base: StrPath, base_format: str, size: int) -> Placed:
    """An overlay of an image that a machine writes to, which is to be put above it there.

    *size*: what the guest sees of it, in bytes.  As `place_empty` otherwise.
    """
    origin = Asked.of("make a layer above", base).path
    async with new_image(path, "qcow2") as draft:
        words = ["create", "-q", "-u", "-f", "qcow2", "-F", base_format]
        words += ["-b", _recorded(origin, draft.target), "--", draft.path, str(size)]
        await run_qemu_img(words, draft.asked, WRITE_LIMITS, fds=draft.fds)
    return draft.placed()


async def place_backup(path: StrPath, parent: str | None, size: int) -> Placed:
    """An empty qcow2 for a backup; *parent*: the name of the layer beside it that it needs.

    As `place_empty` otherwise.
    """
    async with new_image(path, "qcow2") as draft:
        below = [] if parent is None else ["-u", "-F", "qcow2", "-b", f"./{parent}"]
        words = ["create", "-q", "-f", "qcow2", *below, "--", draft.path, str(size)]
        await run_qemu_img(words, draft.asked, WRITE_LIMITS, fds=draft.fds)
    return draft.placed()


def _recorded(base: Path, target: Path) -> str:
    """How an overlay names its base: beside it by its name, so that they can move together."""
    # With ./ in front, a colon in the name is not taken for a protocol.
    return f"./{base.name}" if base.parent == target.parent else str(base)
