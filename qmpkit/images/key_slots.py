"""The secrets that open an encrypted image: LUKS has eight slots for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.changing import changed
from qmpkit.images.details import ImageInfo, info
from qmpkit.images.drafts import StrPath
from qmpkit.images.keys import Secret, same_secret
from qmpkit.images.options import ENCRYPTABLE
from qmpkit.images.tool import Asked

__all__ = ["add_key", "change_key", "remove_key"]

_SLOTS = 8


async def add_key(
    path: StrPath,
    format: str,
    *,
    secret: Secret,
    new_secret: Secret,
    slot: int | None = None,
    iter_time: int | None = None,
) -> ImageInfo:
    """Let *new_secret* open the encrypted image at *path*, too, beside *secret*; what it is then.

    *format* is qcow2 or luks.  *slot*: 0 to 7, which must be free; None: the first that is.
    *iter_time*: milliseconds that testing the secret shall take, 2000 by default.  Both
    secrets go to qemu-img in memory alone.  The content is not encrypted anew: who has had
    a secret, and a copy of the image, reads that with it for ever.  *secret* also opens the
    encrypted bases of the image, which stay what they are.

    Takes some seconds of CPU.  Cancelled or killed, the secret is added or not, and the
    others open the image.  `SpecInvalid` for what cannot be; `ImageFailed` for a wrong
    secret, when no slot is free, when that one is not, or when the image is not encrypted;
    `ImageInUse` when a QEMU has it open.
    """
    _refuse(format, slot, iter_time)
    said = {"state": "active", "new-secret": "key1"}
    if slot is not None:
        said["keyslot"] = str(slot)
    if iter_time is not None:
        said["iter-time"] = str(iter_time)
    return await _amended(Asked.of("add a key to", path), format, said, secret, new_secret)


async def remove_key(
    path: StrPath,
    format: str,
    *,
    secret: Secret,
    old_secret: Secret | None = None,
    slot: int | None = None,
) -> ImageInfo:
    """Let *old_secret*, or the secret in *slot*, open the image at *path* no more.

    *secret* opens it for that, and may be the same one.  The last secret stays: without it
    nobody would read the image again.  For the rest as `add_key`.
    """
    _refuse(format, slot, None, one_of=(old_secret, slot))
    said = {"state": "inactive"}
    if old_secret is not None:
        said["old-secret"] = "key1"
    else:
        said["keyslot"] = str(slot)
    return await _amended(Asked.of("remove a key from", path), format, said, secret, old_secret)


async def change_key(
    path: StrPath,
    format: str,
    *,
    secret: Secret,
    new_secret: Secret,
    iter_time: int | None = None,
) -> ImageInfo:
    """Let *new_secret* open the encrypted image at *path* in the place of *secret*.

    First the new one is added, then the old one is removed: cancelled, killed or failed in
    between, both open it, and `remove_key` takes one away.  One slot must be free.  For
    the rest as `add_key`.
    """
    if same_secret(secret, new_secret):
        raise SpecInvalid([Fault("new_secret", "is the old one")])
    await add_key(path, format, secret=secret, new_secret=new_secret, iter_time=iter_time)
    return await remove_key(path, format, secret=secret, old_secret=secret)


async def _amended(
    asked: Asked,
    format: str,
    said: Mapping[str, str],
    secret: Secret,
    other: Secret | None,
) -> ImageInfo:
    if not (await info(asked.path, format=format)).encrypted:
        raise asked.failed("it is not encrypted", "convert(secret=…) makes an encrypted copy")
    prefix = "encrypt." if format == "qcow2" else ""
    options = ",".join(f"{prefix}{name}={value}" for name, value in said.items())
    words = ["amend", "-q", "-o", options]
    await changed(asked, format, words, secret=secret, new_secret=other)
    return await info(asked.path, format=format)


def _refuse(
    format: str,
    slot: int | None,
    iter_time: int | None,
    one_of: tuple[object, object] | None = None,
) -> None:
    if faults := list(_faults(format, slot, iter_time, one_of)):
        raise SpecInvalid(faults)


def _faults(
    format: str, slot: int | None, iter_time: int | None, one_of: tuple[object, object] | None
) -> Iterator[Fault]:
    if format not in ENCRYPTABLE:
        yield Fault("format", f"{format} images are not encrypted", 'format="qcow2" or "luks"')
    if slot is not None and not 0 <= slot < _SLOTS:
        yield Fault("slot", f"is to be 0 to {_SLOTS - 1}, not {slot}")
    if iter_time is not None and iter_time < 1:
        yield Fault("iter_time", "is to be 1 ms or more")
    if one_of is not None and one_of.count(None) != 1:
        yield Fault("old_secret", "say which: old_secret, or slot, and not both")
