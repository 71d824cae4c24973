"""How a new image is laid out, as one value.  Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.keys import Key
from qmpkit.spec.sizes import to_bytes

__all__ = ["DEFAULTS", "ENCRYPTABLE", "Options", "Preallocation", "option_words"]

Preallocation = Literal["metadata", "falloc", "full"]

ENCRYPTABLE = ("qcow2", "luks")
"""Formats that hold an encrypted image."""

_SMALLEST, _LARGEST = 512, 2 << 20
_SMALLEST_EXTENDED = 16 << 10


def _optional_path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value).absolute()


def _optional_size(value: int | str | None) -> int | None:
    return None if value is None else to_bytes(value, "cluster_size")


@attrs.frozen(kw_only=True)
class Options:
    """How a new image is laid out; None is QEMU's default.

    `preallocation`: "falloc" takes the disk space at once, "full" writes all of it,
    "metadata" (qcow2) only lays the tables out; None takes space as the guest writes.
    `cluster_size` (qcow2): 512 to 2 MiB, a power of two, "64KiB" or bytes; large ones make
    large disks quicker, small ones make overlays smaller.  `extended_l2` (qcow2): parts of
    clusters are allocated by themselves, for overlays with large clusters (16 KiB and up);
    no QEMU before 5.2 reads it.  `lazy_refcounts` (qcow2): quicker, and after a crash the
    image is repaired when it is opened next.  `compression` (qcow2): "zstd" is quicker
    than "zlib".  `iter_time` (encrypted images): milliseconds that testing a secret
    shall take, 2000 by default; less makes guessing a weak secret cheaper.  `data_file`
    (qcow2): a new file that holds the content, and the image only the books; its absolute
    path is put down, so it is to stay there (`amend` records where it was moved).
    `data_file_raw`: the data file is at any time what a raw image of the disk would be.
    """

    preallocation: Preallocation | None = None
    cluster_size: int | None = attrs.field(default=None, converter=_optional_size)
    extended_l2: bool = False
    lazy_refcounts: bool = False
    compression: Literal["zlib", "zstd"] | None = None
    iter_time: int | None = None
    data_file: Path | None = attrs.field(default=None, converter=_optional_path)
    data_file_raw: bool = False


DEFAULTS = Options()


def option_words(
    options: Options, format: str, key: Key | None, *, base: bool = False, data: str = ""
) -> list[str]:
    """The words that give *options*, and *key*, to qemu-img; *base*: the image is to have one.

    *data*: where the data file is while it is made.
    `SpecInvalid` with all that does not go together.
    """
    if faults := list(_faults(options, format, key, base)):
        raise SpecInvalid(faults, f"an image in the format {format}")
    found = dict(_qcow2(options))
    if options.preallocation is not None:
        found["preallocation"] = options.preallocation  # of other formats qemu-img judges
    if key is not None:
        prefix = "encrypt." if format == "qcow2" else ""
        if prefix:
            found["encrypt.format"] = "luks"
        found[f"{prefix}key-secret"] = key.id
        if options.iter_time is not None:
            found[f"{prefix}iter-time"] = str(options.iter_time)
    if data:
        found["data_file"] = data.replace(",", ",,")
        found["data_file_raw"] = "on" if options.data_file_raw else "off"
    return ["-o", ",".join(f"{name}={value}" for name, value in found.items())] if found else []


def _qcow2(options: Options) -> Iterator[tuple[str, str]]:
    if options.cluster_size is not None:
        yield "cluster_size", str(options.cluster_size)
    if options.extended_l2:
        yield "extended_l2", "on"
    if options.lazy_refcounts:
        yield "lazy_refcounts", "on"
    if options.compression is not None:
        yield "compression_type", options.compression


def _faults(options: Options, format: str, key: Key | None, base: bool) -> Iterator[Fault]:
    size = options.cluster_size
    yield from _data_faults(options, format, base)
    if format != "qcow2":
        for name, _ in _qcow2(options):
            field = "compression" if name == "compression_type" else name
            yield Fault(field, f"{format} images have no such option", 'format="qcow2"')
    elif size is not None and (size & (size - 1) or not _SMALLEST <= size <= _LARGEST):
        yield Fault("cluster_size", f"{size} is no power of two from {_SMALLEST} to {_LARGEST}")
    elif options.extended_l2 and size is not None and size < _SMALLEST_EXTENDED:
        yield Fault("extended_l2", f"needs clusters of {_SMALLEST_EXTENDED} bytes or more")
    if base and options.preallocation is not None:
        yield Fault("preallocation", "an overlay takes space as its guest writes", "leave it out")
    if format == "luks" and key is None:
        yield Fault("secret", "a luks image needs one", "say secret=…")
    if key is not None and format not in ENCRYPTABLE:
        yield Fault("secret", f"{format} images are not encrypted", 'format="qcow2" or "luks"')
    if options.iter_time is not None and (key is None or options.iter_time < 1):
        why = "only encrypted images have one" if key is None else "is to be 1 ms or more"
        yield Fault("iter_time", why)


def _data_faults(options: Options, format: str, base: bool) -> Iterator[Fault]:
    if options.data_file is None:
        if options.data_file_raw:
            yield Fault("data_file_raw", "there is no data file", "say which: data_file")
    elif format != "qcow2":
        yield Fault("data_file", f"{format} images have no such option", 'format="qcow2"')
    elif base:
        yield Fault("data_file", "an overlay's content is in itself", "leave it out")
