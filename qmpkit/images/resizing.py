"""The size that a guest sees, changed in place."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from qmpkit.images.bitmaps import change_bitmap
from qmpkit.images.details import info
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed
from qmpkit.images.keys import Secret, held_keys
from qmpkit.images.new import guest_size
from qmpkit.images.opening import changeable
from qmpkit.images.tool import Asked, limits_of_chain, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.spec.backups import BITMAP_PREFIX
from qmpkit.spec.sizes import to_bytes

__all__ = ["resize"]


async def resize(
    path: StrPath,
    size: int | str,
    format: str,
    *,
    shrink: bool = False,
    secret: Secret | None = None,
    allowed: Allowed = None,
    limits: Limits | None = None,
) -> int:
    """Give the image at *path* another size: bytes, "20GiB", or "+5GiB" more.

    Gives back the bytes that a guest sees then.  Only metadata is written, in place:
    cancelled or killed, the image has the old or the new size (a killed qcow2 may have
    leaked clusters, which `check` frees, and its bitmaps broken, as after a crash; a
    cancelled one is let end in order).  The guest's partitions and file systems are the
    guest's to adapt.

    Becoming smaller loses what is beyond the new end; it must be said with *shrink*, and
    then "-5GiB" is possible too.  Overlays keep their own size: those of a base that
    grows do not, those of one that shrinks read zeros where it has ended, and no image
    knows its overlays, so a base with overlays should not be shrunk.  The dirty bitmaps of
    backups go: they would not tell of the zeros that are there when it grows again, so the
    next backup copies all of it.

    *secret* opens an encrypted image.  *allowed*: folders in which all files must be that it
    and its bases name, None for any.  `ImageFailed` when qemu-img fails or *limits* are
    met, `ImageInUse` when a QEMU has it open, be it as the base of a running overlay.
    """
    wanted = _wanted(size)
    asked = Asked.of("resize", path)
    with held_keys(secret) as (key,):
        look = partial(changeable, asked, format, key, allowed)
        chain, image = await trio.to_thread.run_sync(look)
        if shrink and format == "qcow2":
            await _without_backups(asked.path, wanted, secret)
        words = ["resize", "-q", *image.words, *(["--shrink"] if shrink else [])]
        words += ["--", image.name, wanted]
        await run_qemu_img(
            words,
            asked,
            limits or limits_of_chain(len(chain.layers)),
            fds=image.fds,
            opens=chain.files,
        )
    return await guest_size(asked, format)


async def _without_backups(path: Path, wanted: str, secret: Secret | None) -> None:
    """Take out what backups have recorded in an image that becomes smaller."""
    before = await info(path, format="qcow2")
    if wanted.startswith("+") or before.virtual_size <= int(wanted) >= 0:
        return
    for bitmap in before.bitmaps:
        if bitmap.name.startswith(BITMAP_PREFIX):
            await change_bitmap(path, bitmap.name, "remove", format="qcow2", secret=secret)


def _wanted(size: int | str) -> str:
    """As qemu-img takes it: bytes, with a sign in front when it is relative."""
    sign = size.strip()[:1] if isinstance(size, str) else ""
    if isinstance(size, str) and sign and sign in "+-":
        return f"{sign}{to_bytes(size.strip()[1:], 'size')}"
    return str(to_bytes(size, "size"))
