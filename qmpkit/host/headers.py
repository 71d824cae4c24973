"""What a disk image says about itself in its first bytes; nothing is run for that."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import attrs

__all__ = ["Header", "backing_path", "data_path", "has_no_data", "read_header"]

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
# What QEMU takes for a vmdk's description when nobody states the format.
_DESCRIPTION = re.compile(rb"(?:#[^\n]*\n| +\r?\n)*version=[123]\r?\n")
_QED_HAS_BACKING, _QED_RAW_BACKING = 1, 4
_MOST_ENTRIES = 1 << 22  # of a table that QEMU opens
_LONGEST_DESCRIPTOR = 1 << 20  # QEMU reads no more of a vmdk's
# QEMU reads both with C's own parsers, which take a line's end for a space.
_EXTENT = re.compile(rb'[+-]?\d+\s*\S+\s+"([^"\r\n]+)')
_PARENT = re.compile(rb'parentFileNameHint..([^"]*)', re.DOTALL)


@attrs.frozen
class Header:
    """What the first bytes say.

    `format`: QEMU's name, the name of a compression, or "" when nothing is known
    (which raw images are).  `empty`: the file has no byte at all.
    Of qcow2, qcow, qed and vmdk: `backing`, the base as the file names it ("" none), and
    `backing_format`, that of the base ("" not recorded, so QEMU would guess).
    Of qcow2 alone: `data_file`, where the content is when it is in a file of its own;
    `size` in bytes; `encrypted`.
    Of vmdk alone: `extents`, the files that its descriptor says the content is in.
    """

    format: str
    backing: str = ""
    empty: bool = False
    backing_format: str = ""
    data_file: str = ""
    size: int = 0
    encrypted: bool = False
    extents: tuple[str, ...] = ()


def has_no_data(path: str | os.PathLike[str]) -> bool:
    """Whether a qcow2 is as it was made, with nothing written to it; blocking, raises OSError."""
    with open(path, "rb") as file:  # noqa: PTH123
        entries, offset = struct.unpack(">IQ", file.read(48).ljust(48, b"\0")[36:])
        file.seek(offset)
        return not any(file.read(8 * min(entries, _MOST_ENTRIES)))


def read_header(path: str | os.PathLike[str], stated: str | None = None) -> Header:
    """Read the header of *path*; blocking, raises OSError.

    *stated*: the format in which QEMU will open it.  As vmdk it takes any text.
    Whatever a damaged header claims has a meaning here; what QEMU refuses is left out.
    """
    # Non-blocking: opening a FIFO would wait for a writer for ever.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = os.pread(fd, 512, 0)
        kind = "vmdk" if stated == "vmdk" else _identify(start)
        if (read := _READERS.get(kind)) is not None:
            return read(fd, start)
        return Header(kind, empty=not start)
    finally:
        os.close(fd)


def _identify(start: bytes) -> str:
    if start[_VDI_OFFSET : _VDI_OFFSET + 4] == _VDI_MAGIC:
        return "vdi"
    bootable = start[510:512] == _BOOT_SIGNATURE
    for magic, name in _MAGIC.items():
        if start.startswith(magic) and not (bootable and len(magic) < 4):
            return name
    return "vmdk" if _DESCRIPTION.match(start) else ""


def _qcow2(fd: int, start: bytes) -> Header:
    if len(start) < 32:
        return Header("qcow2")
    version, offset, length, cluster_bits, size = struct.unpack_from(">IQIIQ", start, 4)
    cluster = 1 << min(max(cluster_bits, _SMALLEST_CLUSTER), _LARGEST_CLUSTER)
    # QEMU takes a name from the first cluster alone; the kernel knows no offset beyond 2^63.
    named = offset and 0 < length <= min(_LONGEST_NAME, cluster - offset)
    backing = _name(os.pread(fd, length, offset)) if named else ""
    # They may go on to the name, and QEMU looks no further.
    end = min(offset, cluster) if offset else cluster
    extensions = _extensions(fd, start, version, end)
    if version == 1:  # an older format, which records no format of its base
        return Header("qcow", backing, size=size, encrypted=any(start[36:40]))
    return Header(
        "qcow2",
        backing,
        backing_format=extensions.get(_BACKING_FORMAT, "") if backing else "",
        data_file=extensions.get(_DATA_FILE, "") if _has_data_file(start, version) else "",
        size=size,
        encrypted=any(start[32:36]),
    )


def _qed(fd: int, start: bytes) -> Header:
    if len(start) < 64:
        return Header("qed")
    (features,) = struct.unpack_from("<Q", start, 16)
    at, length = struct.unpack_from("<II", start, 56)
    if not features & _QED_HAS_BACKING or not 0 < length <= _LONGEST_NAME:
        return Header("qed")
    recorded = "raw" if features & _QED_RAW_BACKING else ""
    return Header("qed", _name(os.pread(fd, length, at)), backing_format=recorded)


def _vmdk(fd: int, start: bytes) -> Header:
    """A text of its own, or a header that has one within."""
    binary = start.startswith((b"KDMV", b"COWD"))
    # Of a binary one QEMU reads the parent's name here, wherever the header puts the text.
    parent = _PARENT.search(_text(fd, 512 if binary else 0))
    backing = os.fsdecode(parent[1]) if parent else ""
    if binary:
        capacity = int.from_bytes(start[12:20], "little")
        at = int.from_bytes(start[28:36], "little") << 9
        if start.startswith(b"COWD") or capacity or not at:  # the content is in this file
            return _with_parent(backing)
    extents = _EXTENT.findall(_text(fd, at if binary else 0))
    return attrs.evolve(_with_parent(backing), extents=tuple(map(os.fsdecode, extents)))


def _with_parent(backing: str) -> Header:
    return Header("vmdk", backing, backing_format="vmdk" if backing else "")


def _text(fd: int, at: int) -> bytes:
    if at >= 1 << 62:
        return b""
    return os.pread(fd, _LONGEST_DESCRIPTOR, at).partition(b"\0")[0]


_READERS = {"qcow2": _qcow2, "qed": _qed, "vmdk": _vmdk}


def _name(raw: bytes) -> str:
    return os.fsdecode(raw.partition(b"\0")[0])  # QEMU reads it as a C string


def _has_data_file(start: bytes, version: int) -> bool:
    return version >= 3 and bool(int.from_bytes(start[72:80], "big") & 4)


def _extensions(fd: int, start: bytes, version: int, end: int) -> dict[int, str]:
    """The header's extensions by kind, as text; they end with kind 0 or at *end*.

    Of several of one kind QEMU takes the last, however many there are.
    """
    found: dict[int, str] = {}
    begin = int.from_bytes(start[100:104], "big") if version >= 3 else 72
    area = os.pread(fd, max(0, end - begin), begin)
    at = 0
    while at + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, at)
        if not kind or length > len(area) - at - 8:
            break
        found[kind] = _name(area[at + 8 : at + 8 + min(length, _LONGEST_NAME)])
        at += 8 + (length + 7) // 8 * 8
    return found


def backing_path(image: Path, backing: str) -> Path | None:
    """The file that *image*'s backing name leads to; None when it is no plain file name."""
    if backing.startswith("file:"):
        backing = backing.removeprefix("file:")
    elif ":" in backing.partition("/")[0]:
        return None  # nbd://…, json:{…}: QEMU's to judge
    return image.parent / backing


def data_path(name: str) -> Path | None:
    """The data file that a qcow2's name for it leads to; None when it is no plain file.

    Nor is a relative one: unlike a base's, it counts from QEMU's working directory.
    """
    path = Path(name.removeprefix("file:"))
    return path if path.is_absolute() else None
