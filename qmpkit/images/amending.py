"""What a qcow2 is like inside, changed in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.changing import changed
from qmpkit.images.data_files import record_data_file
from qmpkit.images.details import ImageInfo, info
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import Allowed
from qmpkit.images.keys import Secret
from qmpkit.images.progress import Progress
from qmpkit.images.tool import Asked
from qmpkit.process.limits import Limits

__all__ = ["Compat", "amend"]

Compat = Literal["0.10", "1.1"]

_REFCOUNT_BITS = (1, 2, 4, 8, 16, 32, 64)
_OLD_BITS = 16  # all that compat 0.10 knows


async def amend(
    path: StrPath,
    format: str = "qcow2",
    *,
    compat: Compat | None = None,
    lazy_refcounts: bool | None = None,
    refcount_bits: int | None = None,
    data_file: StrPath | None = None,
    secret: Secret | None = None,
    allowed: Allowed = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> ImageInfo:
    """Change how the qcow2 at *path* keeps its books, without a copy; what it is then.

    None leaves a thing as it is.  *compat*: "1.1", or "0.10" for QEMU before 1.1, which
    knows neither bitmaps nor extended L2 entries, lazy or other refcounts, external data
    files or what zstd has compressed: an image that has one of those is an error.
    *lazy_refcounts*: quicker, and after a crash the image is repaired when it is opened
    next.  *refcount_bits*: 1, 2, 4, 8, 16 (QEMU's default), 32 or 64 for each cluster; the
    more, the more snapshots.  What a guest reads stays the same.  *data_file*: where the
    file with its content is now, which was moved; written down before the rest, without a
    look at what was put down, and any other file is a broken disk.

    Cancelled, the change is made or not; where it takes longer than 5 s more, and when this
    program is killed or the disk is full, the image is sound and reads as it did, with leaked
    clusters at worst, which `check` frees; its bitmaps may be broken, as after a crash.
    *progress* is told how far it is.

    *secret* opens an encrypted image; `add_key` and the like change its secrets.  *allowed*:
    folders in which all files must be that it and its bases name, None for any.
    `SpecInvalid` for what does not go together, `ImageFailed` when qemu-img refuses or *limits*
    are met (None: memory alone), `ImageInUse` when a QEMU has the image open.
    """
    if faults := list(_faults(format, compat, lazy_refcounts, refcount_bits, data_file)):
        raise SpecInvalid(faults)
    if data_file is not None:
        await record_data_file(path, data_file, secret, allowed)
    asked = Asked.of("amend", path)
    if compat == "0.10" and (await info(asked.path, format=format, allowed=allowed)).bitmaps:
        # qemu-img would do it, and leave all of them broken.
        raise asked.failed("it has bitmaps, and compat 0.10 has none", "remove its bitmaps first")
    options = [f"compat={compat}"] if compat is not None else []
    if lazy_refcounts is not None:
        options.append(f"lazy_refcounts={'on' if lazy_refcounts else 'off'}")
    if refcount_bits is not None:
        options.append(f"refcount_bits={refcount_bits}")
    if options:
        await changed(
            asked,
            format,
            ["amend", "-p", "-o", ",".join(options)],
            secret=secret,
            allowed=allowed,
            progress=progress,
            limits=limits,
        )
    elif progress:
        progress._set(1.0)
    return await info(asked.path, format=format, allowed=allowed)


def _faults(
    format: str, compat: str | None, lazy: bool | None, bits: int | None, data: object
) -> Iterator[Fault]:
    if format != "qcow2":
        yield Fault("format", f"{format} images have nothing to amend", "convert it to qcow2")
    if compat is None and lazy is None and bits is None and data is None:
        known = "compat, lazy_refcounts, refcount_bits or data_file"
        yield Fault("", "it is not said what to change", known)
    if bits is not None and bits not in _REFCOUNT_BITS:
        known = ", ".join(map(str, _REFCOUNT_BITS))
        yield Fault("refcount_bits", f"is to be one of {known}, not {bits}")
    if compat not in (None, "0.10", "1.1"):
        yield Fault("compat", f'is to be "0.10" or "1.1", not {compat!r}')
    if compat == "0.10" and lazy:
        yield Fault("lazy_refcounts", "compat 0.10 has none", "lazy_refcounts=False")
    if compat == "0.10" and bits not in (None, _OLD_BITS):
        yield Fault("refcount_bits", f"compat 0.10 has {_OLD_BITS}", f"say {_OLD_BITS}")
