"""What a disk image says about itself in its first bytes; nothing is run for that."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import attrs

__all__ = ["Header", "backing_path", "read_header"]

_MAGIC = {
    b"QFI\xfb": "qcow2",
    b"QED\0": "qed",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"LUKS\xba\xbe": "luks",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_VDI_OFFSET, _VDI_MAGIC = 64, b"\x7f\x10\xda\xbe"
# The boot sector of a raw disk may begin with any bytes, so short magics count only without
# its signature at byte 510.
_BOOT_SIGNATURE = b"\x55\xaa"
_LONGEST_NAME = 1023  # of a backing file, by the qcow2 specification


@attrs.frozen
class Header:
    """What the first bytes say.

    `format`: QEMU's name, the name of a compression, or "" when nothing is known
    (which raw images are).  `backing`: the base as the qcow2 file names it ("" none).
    `empty`: the file has no byte at all.
    """

    format: str
    backing: str = ""
    empty: bool = False


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of *path*; blocking, raises OSError."""
    # Non-blocking: opening a FIFO would wait for a writer for ever.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = os.pread(fd, 512, 0)
        kind = _identify(start)
        backing = _qcow2_backing(fd, start) if kind == "qcow2" else ""
        return Header(kind, backing, empty=not start)
    finally:
        os.close(fd)


def _identify(start: bytes) -> str:
    if start[_VDI_OFFSET : _VDI_OFFSET + 4] == _VDI_MAGIC:
        return "vdi"
    bootable = start[510:512] == _BOOT_SIGNATURE
    for magic, name in _MAGIC.items():
        if start.startswith(magic) and not (bootable and len(magic) < 4):
            return name
    return ""


def _qcow2_backing(fd: int, start: bytes) -> str:
    if len(start) < 20:
        return ""
    offset, length = struct.unpack_from(">QI", start, 8)
    if not offset or not 0 < length <= _LONGEST_NAME:
        return ""
    return os.fsdecode(os.pread(fd, length, offset))


def backing_path(image: Path, backing: str) -> Path | None:
    """The file that *image*'s backing name leads to; None when it is no plain file name."""
    if backing.startswith("file:"):
        backing = backing.removeprefix("file:")
    elif ":" in backing.partition("/")[0]:
        return None  # nbd://…, json:{…}: QEMU's to judge
    return image.parent / backing
