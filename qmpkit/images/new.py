"""New disk images through qemu-img: whole or not at all, and never over an existing file."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import trio

from qmpkit.host.chain import MAX_CHAIN
from qmpkit.host.headers import read_header
from qmpkit.images.data_files import drafted
from qmpkit.images.details import info
from qmpkit.images.drafts import Placed, StrPath, new_image
from qmpkit.images.in_use import Allowed, checked_chain, refuse_used
from qmpkit.images.keys import Key, Secret, held_keys
from qmpkit.images.options import DEFAULTS, Options, option_words
from qmpkit.images.store.uses import Home, homes_of, registered
from qmpkit.images.tool import WRITE_LIMITS, Asked, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.spec.sizes import to_bytes

__all__ = [
    "OVERLAYS",
    "create",
    "guest_size",
    "overlay",
    "place_empty",
    "place_layer",
    "place_overlay",
    "raw_size",
    "recorded_name",
]

_SECTOR = 512
OVERLAYS = ("qcow2", "qed")
_CHECKED = ("raw", "qcow2")  # of others qemu-img makes some that it cannot open: a vmdk of 8 EiB
_SNAPSHOT_CURE = "stop that machine first, or make the overlay with the running machine's snapshots"


async def create(
    path: StrPath,
    size: int | str,
    format: str,
    *,
    options: Options = DEFAULTS,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits = WRITE_LIMITS,
) -> Path:
    """Make an empty image of *size* ("10GiB" or bytes) at *path*; gives back its absolute path.

    *format* is QEMU's name (`qcow2`, `raw`, `luks`, …).  *options*: how it is laid out.
    *secret* encrypts it (qcow2 and luks, by LUKS): text in UTF-8, without which nobody
    reads it; deriving its key takes seconds of CPU.  The image gets its name only when it
    is whole and on disk, so *path* is never half an image, not even after a SIGKILL or a
    power cut.  Its mode is 0644 less the umask.  A data file that *options* name is made
    before it, and must be in one of the folders *allowed* (None: anywhere); a SIGKILL in
    between may leave that file alone.  `ImageFailed` when *path* exists, qemu-img
    fails or meets one of *limits*, `SpecInvalid` when options do not go together,
    `BinaryMissing` without qemu-img.  Cancelled or failed, nothing is left.
    """
    placed = await place_empty(
        path, size, format, options=options, secret=secret, allowed=allowed, limits=limits
    )
    return placed.path


async def overlay(
    path: StrPath,
    base: StrPath,
    base_format: str,
    format: str = "qcow2",
    *,
    options: Options = DEFAULTS,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits = WRITE_LIMITS,
) -> Path:
    """Make an image at *path* that holds only what differs from *base*, in the base's size.

    A base in the same directory is recorded by its name, so the two can be moved
    together; any other by its absolute path.  As `create` otherwise; *format* is
    qcow2 or qed.  A base in the image store is told of it, and stays there for it.
    *secret* encrypts what the overlay holds; the base stays what it is.
    *allowed*: the folders in which all files must be that *base* and its bases name, None
    for any.  `ImageInUse` when a running QEMU writes to *base* or to one of the
    images below it, which would corrupt the overlay.
    """
    placed = await place_overlay(
        path,
        base,
        base_format,
        format,
        options=options,
        secret=secret,
        allowed=allowed,
        limits=limits,
    )
    return placed.path


async def place_empty(
    path: StrPath,
    size: int | str,
    format: str,
    *,
    options: Options = DEFAULTS,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits = WRITE_LIMITS,
) -> Placed:
    """`create`, for a caller that may have to take the image away again.

    There is no checkpoint between the image's appearance and the return.
    """
    length = to_bytes(size)
    with held_keys(secret) as (key,):
        _new(format, options, key)  # which tells what does not go together
        async with drafted(path, format, options, key, allowed=allowed) as (draft, data):
            where = data.path if data else ""
            words = ["create", "-q", *_new(format, options, key, data=where)]
            fds = {**draft.fds, **(data.fds if data else {}), **(key.fds if key else {})}
            whole = options.preallocation in ("falloc", "full")
            end = ["--", draft.path, str(length)]
            await run_qemu_img([*words, *end], draft.asked, limits, fds=fds, long=whole)
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
    size: int | None = None,
    options: Options = DEFAULTS,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits = WRITE_LIMITS,
) -> Placed:
    """`overlay`, in the way of `place_empty`; *size*: bytes, when they are not the base's."""
    asked = Asked.of("make an overlay of", base)
    origin = asked.path
    with held_keys(secret) as (key,):
        # -u: from the draft a name beside leads nowhere, and the base has been looked at.
        words = ["create", "-q", "-u", *_new(format, options, key, base=True), "-F", base_format]
        look = partial(_look_at_base, asked, base_format, format, allowed)
        homes = await trio.to_thread.run_sync(look)
        if size is None:
            size = await guest_size(asked, base_format)
        async with AsyncExitStack() as stack:
            if homes:
                await _note(stack, asked, homes, Asked.of("create", path).path)
            draft = await stack.enter_async_context(new_image(path, format))
            words += ["-b", recorded_name(draft.target, origin), "--", draft.path, str(size)]
            fds = {**draft.fds, **(key.fds if key else {})}
            await run_qemu_img(words, draft.asked, limits, fds=fds)
        return draft.placed()


async def place_layer(
    path: StrPath,
    base: StrPath,
    base_format: str,
    size: int,
    *,
    options: Options = DEFAULTS,
    secret: Secret | None = None,
) -> Placed:
    """An overlay of an image that a machine writes to, which is to be put above it there.

    *size*: what the guest sees of it, in bytes.  As `place_empty` otherwise.
    """
    origin = Asked.of("make a layer above", base).path
    target = Asked.of("create", path).path
    below = ["-u", "-F", base_format, "-b", recorded_name(target, origin)]
    with held_keys(secret) as (key,):
        words = ["create", "-q", *_new("qcow2", options, key), *below]
        async with new_image(path, "qcow2") as draft:
            fds = {**draft.fds, **(key.fds if key else {})}
            words += ["--", draft.path, str(size)]
            await run_qemu_img(words, draft.asked, WRITE_LIMITS, fds=fds)
        return draft.placed()


async def _note(stack: AsyncExitStack, asked: Asked, homes: list[Home], overlay: Path) -> None:
    """Have the image store know of the overlay that is made on its images."""
    try:
        await stack.enter_async_context(registered(homes, overlay))
    except OSError as error:
        raise asked.failed_by(error) from error


def _new(
    format: str, options: Options, key: Key | None, *, base: bool = False, data: str = ""
) -> list[str]:
    """The words that say what is to be made."""
    objects = key.words if key else ()
    return [*objects, "-f", format, *option_words(options, format, key, base=base, data=data)]


def recorded_name(overlay: Path, base: Path) -> str:
    """How an overlay names its base: by its name alone when it is beside it."""
    # With ./ in front, a colon in the name is not taken for a protocol.
    return f"./{base.name}" if base.parent == overlay.parent else str(base)


def _look_at_base(asked: Asked, base_format: str, format: str, allowed: Allowed) -> list[Home]:
    """Which images of the base's chain are in an image store; after every reason to refuse."""
    if format not in OVERLAYS:
        raise asked.failed(f"{format} images have no base", 'format="qcow2"')
    # qemu-img does not look at the base's locks when it makes an overlay.
    refuse_used(asked, for_writing=False, cure=_SNAPSHOT_CURE)
    chain = checked_chain(asked, base_format, allowed)
    if len(chain.layers) == MAX_CHAIN:
        raise asked.failed(f"it would be deeper than {MAX_CHAIN} images", "use a base further down")
    header = chain.layers[0].header
    if base_format not in ("raw", header.format):
        raise asked.failed(f"it is {header.format or 'raw'}, not {base_format}", "state its format")
    return homes_of(layer.path for layer in chain.layers)


async def guest_size(asked: Asked, format: str) -> int:
    """Bytes that a guest sees of the image; qemu-img is run where no header of ours tells."""
    if format == "raw":
        return await trio.to_thread.run_sync(raw_size, asked)
    if format == "qcow2":
        try:
            return (await trio.to_thread.run_sync(read_header, asked.path)).size
        except OSError as error:
            raise asked.failed_by(error) from error
    return (await info(asked.path, format=format)).virtual_size


def raw_size(asked: Asked) -> int:
    """Bytes that a guest sees of a raw image; blocking."""
    try:
        fd = os.open(asked.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return -(-os.lseek(fd, 0, os.SEEK_END) // _SECTOR) * _SECTOR  # block devices too
        finally:
            os.close(fd)
    except OSError as error:
        raise asked.failed_by(error) from error
