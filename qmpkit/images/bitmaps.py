"""Persistent dirty bitmaps in an image that nobody uses.

A bitmap notes what a guest writes, for the next incremental backup.
"""

from __future__ import annotations

from typing import Literal

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.changing import changed
from qmpkit.images.details import Bitmap
from qmpkit.images.drafts import StrPath
from qmpkit.images.keys import Secret
from qmpkit.images.tool import Asked
from qmpkit.spec.sizes import to_bytes

__all__ = ["add_bitmap", "change_bitmap", "merge_bitmap"]

BitmapChange = Literal["remove", "clear", "enable", "disable"]

_LONGEST = 1023  # bytes, by the qcow2 specification
_FINEST, _COARSEST = 512, 1 << 31


async def add_bitmap(
    path: StrPath,
    name: str,
    format: str = "qcow2",
    *,
    granularity: int | str = 64 << 10,
    recording: bool = True,
    secret: Secret | None = None,
) -> Bitmap:
    """Add an empty bitmap *name* to the qcow2 at *path*; gives it back.

    *granularity*: bytes for a bit, a power of two; small ones make small backups.
    *recording* False: nothing is noted until it is enabled.  *secret* opens an encrypted
    image.

    Cancelled, it is added or not.  A SIGKILL of this program in the few ms may leave every
    bitmap of the image broken, as a crash of a machine does: `info` tells, the content is
    whole, and the next backup is a full one.  `SpecInvalid` for a name or a granularity
    that cannot be, `ImageFailed` when there is one of that name, `ImageInUse` when a QEMU
    has the image open.
    """
    _check_name(name)
    step = to_bytes(granularity, "granularity")
    if step & (step - 1) or not _FINEST <= step <= _COARSEST:
        why = f"{step} is no power of two from {_FINEST} to {_COARSEST}"
        raise SpecInvalid([Fault("granularity", why)])
    words = ["bitmap", "--add", "-g", str(step), *([] if recording else ["--disable"])]
    asked = Asked.of("add a bitmap to", path)
    await changed(asked, format, words, [name], secret=secret)
    return Bitmap(name, step, recording=recording, broken=False)


async def change_bitmap(
    path: StrPath,
    name: str,
    change: BitmapChange,
    format: str = "qcow2",
    *,
    secret: Secret | None = None,
) -> None:
    """Remove the bitmap *name*, clear it (nothing is noted as written), enable or disable it.

    What it has noted is lost by the first two.  For the rest as `add_bitmap`.
    """
    _check_name(name)
    asked = Asked.of(f"{change} a bitmap of", path)
    await changed(asked, format, ["bitmap", f"--{change}"], [name], secret=secret)


async def merge_bitmap(
    path: StrPath, name: str, source: str, format: str = "qcow2", *, secret: Secret | None = None
) -> None:
    """Note in the bitmap *name* all that the bitmap *source* of the same image notes, too.

    For the rest as `add_bitmap`.
    """
    _check_name(name)
    _check_name(source)
    asked = Asked.of("merge bitmaps of", path)
    # Joined by =, a name that begins with a dash is no option.
    await changed(asked, format, ["bitmap", f"--merge={source}"], [name], secret=secret)


def _check_name(name: str) -> None:
    problem = ""
    if not name:
        problem = "the name is empty"
    elif not name.isprintable():
        problem = "the name has a character that cannot be shown"
    elif len(name.encode(errors="replace")) > _LONGEST:
        problem = f"the name is longer than {_LONGEST} bytes"
    if problem:
        raise SpecInvalid([Fault("name", problem)])
