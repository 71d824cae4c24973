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
_SMALLEST_CLUSTER, _LARGEST_CLUSTER = 9, 21  # bits
_BACKING_FORMAT, _DATA_FILE = 0xE2792ACA, 0x44415441
_MOST_EXTENSIONS = 32  # five kinds are known


@attrs.frozen
class Header:
    """What the first bytes say.

    `format`: QEMU's name, the name of a compression, or "" when nothing is known
    (which raw images are).  `empty`: the file has no byte at all.
    Of qcow2 alone: `backing`, the base as the file names it ("" none), and
    `backing_format`, that of the base ("" not recorded, so QEMU would guess);
    `data_file`, where the content is when it is in a file of its own; `size` in bytes.
    """

    format: str
    backing: str = ""
    empty: bool = False
    backing_format: str = ""
    data_file: str = ""
    size: int = 0


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of *path*; blocking, raises OSError.

    Whatever a damaged header claims has a meaning here; what QEMU refuses is left out.
    """
    # Non-blocking: opening a FIFO would wait for a writer for ever.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = os.pread(fd, 512, 0)
        kind = _identify(start)
        return _qcow2(fd, start) if kind == "qcow2" else Header(kind, empty=not start)
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


def _qcow2(fd: int, start: bytes) -> Header:
    if len(start) < 32:
        return Header("qcow2")
    version, offset, length, cluster_bits, size = struct.unpack_from(">IQIIQ", start, 4)
    cluster = 1 << min(max(cluster_bits, _SMALLEST_CLUSTER), _LARGEST_CLUSTER)
    # QEMU takes a name from the first cluster alone; the kernel knows no offset beyond 2^63.
    named = offset and 0 < length <= min(_LONGEST_NAME, cluster - offset)
    backing = _name(os.pread(fd, length, offset)) if named else ""
    extensions = _extensions(fd, start, version, cluster)
    return Header(
        "qcow2",
        backing,
        backing_format=extensions.get(_BACKING_FORMAT, "") if backing else "",
        data_file=extensions.get(_DATA_FILE, "") if _has_data_file(start, version) else "",
        size=size,
    )


def _name(raw: bytes) -> str:
    return os.fsdecode(raw.partition(b"\0")[0])  # QEMU reads it as a C string


def _has_data_file(start: bytes, version: int) -> bool:
    return version >= 3 and bool(int.from_bytes(start[72:80], "big") & 4)


def _extensions(fd: int, start: bytes, version: int, end: int) -> dict[int, str]:
    """The header's extensions by kind, as text; they end with kind 0 or the first cluster."""
    found: dict[int, str] = {}
    at = int.from_bytes(start[100:104], "big") if version >= 3 else 72
    for _ in range(_MOST_EXTENSIONS):
        kind, length = struct.unpack(">II", os.pread(fd, 8, at).ljust(8, b"\0"))
        if not kind or at + 8 > end:
            break
        found.setdefault(kind, _name(os.pread(fd, min(length, _LONGEST_NAME), at + 8)))
        at += 8 + (length + 7) // 8 * 8
    return found


def backing_path(image: Path, backing: str) -> Path | None:
    """The file that *image*'s backing name leads to; None when it is no plain file name."""
    if backing.startswith("file:"):
        backing = backing.removeprefix("file:")
    elif ":" in backing.partition("/")[0]:
        return None  # nbd://…, json:{…}: QEMU's to judge
    return image.parent / backing
