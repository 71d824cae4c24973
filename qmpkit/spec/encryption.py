"""Encrypted disks: which secrets their images need, and how QEMU is told of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.given import items_of
from qmpkit.spec.names import secret_id
from qmpkit.spec.options import Json

__all__ = [
    "LONGEST_SECRET",
    "BaseImage",
    "BaseKey",
    "Luks",
    "backing_of",
    "encryption_of",
    "luks_faults",
    "secret_objects",
    "secret_problem",
    "to_luks",
]

LONGEST_SECRET = 4096
"""In bytes."""


def _path(value: str | os.PathLike[str]) -> str:
    return os.fspath(value)


@attrs.frozen
class BaseKey:
    """The file with the secret of one image below a disk's, when it is another than the disk's."""

    file: str = attrs.field(converter=_path)
    key_file: str = attrs.field(converter=_path)


def _bases(value: Iterable[BaseKey]) -> tuple[BaseKey, ...]:
    return items_of(value, "bases", 'BaseKey("base.qcow2", "base.key")', (BaseKey,))


@attrs.frozen
class Luks:
    """That a disk is encrypted, and where its secret is.

    `key_file`: the file with the secret, to the byte, a newline too; text in UTF-8 of 1 to
    4096 bytes, read by QEMU at its start and when an image is made for the disk.  It opens the
    disk's image and those below that are encrypted, but for the ones that `bases` names.
    `iter_time`: milliseconds that testing the secret shall take for images that are made, 2000
    by default; with a secret that nobody can guess (32 random bytes) 10 will do.  QEMU tests
    it each time that it opens an image, and the guest's disks stand still for so long when
    a snapshot or a move opens one.
    """

    key_file: str = attrs.field(converter=_path)
    iter_time: int | None = attrs.field(default=None, kw_only=True)
    bases: tuple[BaseKey, ...] = attrs.field(default=(), converter=_bases, kw_only=True)


def to_luks(value: str | os.PathLike[str] | Luks | None) -> Luks | None:
    """A path is that of the secret's file."""
    if value is None or isinstance(value, Luks):
        return value
    if not isinstance(value, str | os.PathLike):
        hint = 'the file with its secret: luks="web.key"'
        raise SpecInvalid([Fault("luks", f"cannot be {value!r}", hint)])
    return Luks(value)


@attrs.frozen
class BaseImage:
    """An image below a disk's, as it was found: QEMU is told of each when one is encrypted.

    `secret`: 0 when the disk's own opens it, n when that of the nth of `Luks.bases` does, None
    when it is not encrypted.
    """

    file: str
    format: str
    driver: str
    secret: int | None


def secret_problem(secret: bytes) -> str:
    """Why QEMU would not take it; empty when it is fine."""
    if not secret:
        return "is empty"
    if b"\0" in secret:
        return "holds a NUL byte, where QEMU would end it"
    if len(secret) > LONGEST_SECRET:
        return f"is longer than {LONGEST_SECRET} bytes"
    try:
        secret.decode()
    except UnicodeDecodeError:
        return "is not UTF-8, which QEMU demands"
    return ""


def secret_objects(disk_id: str, luks: Luks | None) -> Iterator[Json]:
    """The `-object`s (and `object-add`s) that hold the secrets of a disk: names of files alone."""
    if luks is None:
        return
    files = [luks.key_file, *(base.key_file for base in luks.bases)]
    for number, file in enumerate(files):
        yield {"qom-type": "secret", "id": secret_id(disk_id, number), "file": file}


def encryption_of(format: str, secret: str) -> Json:
    """What a block node of an encrypted image says of that, for its secret's object."""
    if format == "luks":
        return {"key-secret": secret}
    return {"encrypt": {"format": "luks", "key-secret": secret}}


def backing_of(disk_id: str, bases: Sequence[BaseImage]) -> Json:
    """The node below a disk's, as QEMU would open it by itself if it knew the secrets.

    Empty when none of *bases* is encrypted, so that it does.
    """
    if all(base.secret is None for base in bases):
        return {}
    node: Json = {}
    for base in reversed(bases):
        file = {"driver": base.driver, "filename": base.file}
        below: Json = {"backing": node} if node else {}
        node = {"driver": base.format, "read-only": True, "file": file, **below}
        if base.secret is not None:
            node |= encryption_of(base.format, secret_id(disk_id, base.secret))
    return {"backing": node}


def luks_faults(luks: Luks | None, format: str, where: str) -> Iterator[Fault]:
    """Everything that contradicts itself in what is said of a disk's encryption."""
    if luks is None:
        if format == "luks":
            yield Fault(f"{where}.luks", "a luks image needs a secret", 'luks = "web.key"')
        return
    if format == "raw":
        message = "a raw image holds no encryption"
        yield Fault(f"{where}.format", message, 'format = "qcow2" or "luks"')
    if not luks.key_file:
        yield Fault(f"{where}.luks.key_file", "the path is empty")
    if luks.iter_time is not None and luks.iter_time < 1:
        yield Fault(f"{where}.luks.iter_time", f"is to be 1 ms or more, not {luks.iter_time}")
    seen: set[str] = set()
    for number, base in enumerate(luks.bases):
        at = f"{where}.luks.bases[{number}]"
        for name, path in (("file", base.file), ("key_file", base.key_file)):
            if not path:
                yield Fault(f"{at}.{name}", "the path is empty")
        if base.file in seen:
            yield Fault(f"{at}.file", f"{base.file!r} is named twice")
        seen.add(base.file)
