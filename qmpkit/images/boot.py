"""How a disk wants to be booted, read from its first sectors.  Pure."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from uuid import UUID

import attrs

__all__ = ["LOOK_AT", "BootSigns", "boot_signs"]

LOOK_AT = 64 << 10
"""Bytes from the start that `boot_signs` wants: the GPT of 4 KiB sectors and an ISO's volumes."""

_CODE = 440  # bytes of code in a master boot record, before the disk's signature
_PARTITIONS = 446
_SIGNATURE = b"\x55\xaa"
_MBR_ESP, _MBR_PROTECTIVE = 0xEF, 0xEE
_SECTOR_SIZES = (512, 4096)
_ISO_VOLUMES, _ISO_SECTOR = 32 << 10, 2048
_EL_TORITO = b"\0CD001\1EL TORITO SPECIFICATION"

_ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
# Partitions that only a loader started by a BIOS reads: GRUB's, and FreeBSD's.
_FOR_BIOS = (
    UUID("21686148-6449-6e6f-744e-656564454649"),
    UUID("83bd6b9d-7f41-11dc-be0b-001560b84f0f"),
)
_LEGACY_BOOTABLE = 1 << 2  # attribute by which syslinux and the BIOS find what to start
# The Discoverable Partitions Specification: root and /usr say which CPU they are for.
_ARCHES = {
    UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "x86_64",
    UUID("8484680c-9521-48c6-9c11-b0720656f69e"): "x86_64",
    UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"): "aarch64",
    UUID("b0e01050-ee5f-4390-949a-9101b17104e9"): "aarch64",
    UUID("72ec70a6-cf74-40e6-bd49-4bda08e8f224"): "riscv64",
    UUID("beaec34b-8442-439b-a40b-984381ed097d"): "riscv64",
}


@attrs.frozen
class BootSigns:
    """What a disk's first sectors promise.

    `bios`: code that a BIOS starts.  `uefi`: an EFI system partition.  `arch`: whose
    root partition it is, None when it does not say.  `iso`: it is a CD (ISO 9660), and
    `bios` then means that it can be booted at all (El Torito).
    """

    bios: bool = False
    uefi: bool = False
    arch: str | None = None
    iso: bool = False


def boot_signs(start: bytes) -> BootSigns:
    """Judge *start*, the first `LOOK_AT` bytes of a disk or all it has; never fails.

    A GPT counts only when its checksums are right.  On a GPT with an EFI system
    partition boot code alone is no sign of a BIOS: Windows and parted write some
    everywhere; it needs a partition that a BIOS loader would read.
    """
    if start[_ISO_VOLUMES + 1 : _ISO_VOLUMES + 6] == b"CD001":
        # Whether its loaders are for a BIOS or UEFI stands far behind; most CDs have both.
        return BootSigns(bios=start.startswith(_EL_TORITO, _ISO_VOLUMES + _ISO_SECTOR), iso=True)
    if start[510:512] != _SIGNATURE:
        return BootSigns()
    code = any(start[:_CODE])
    entries = next((found for size in _SECTOR_SIZES if (found := _gpt(start, size))), None)
    if entries is None:
        return BootSigns(bios=code, uefi=_MBR_ESP in _mbr_types(start))
    kinds = {entry.kind for entry in entries}
    uefi = _ESP in kinds
    wanted = not uefi or any(kind in kinds for kind in _FOR_BIOS)
    wanted = wanted or any(entry.attributes & _LEGACY_BOOTABLE for entry in entries)
    arches = {_ARCHES[kind] for kind in kinds if kind in _ARCHES}
    arch = arches.pop() if len(arches) == 1 else None
    return BootSigns(bios=code and wanted, uefi=uefi, arch=arch)


def _mbr_types(start: bytes) -> tuple[int, ...]:
    return tuple(start[_PARTITIONS + 16 * number + 4] for number in range(4))


@attrs.frozen
class _Entry:
    kind: UUID
    attributes: int


def _gpt(start: bytes, sector: int) -> tuple[_Entry, ...] | None:
    """The partitions of the GPT of a disk with such sectors; None without a sound one."""
    header = start[sector : sector + 92]
    if _MBR_PROTECTIVE not in _mbr_types(start) or len(header) < 92 or header[:8] != b"EFI PART":
        return None
    length, checksum = struct.unpack_from("<II", header, 12)
    lba, count, size, entries_checksum = struct.unpack_from("<QIII", header, 72)
    whole = bytearray(start[sector : sector + length])
    whole[16:20] = bytes(4)
    if not 92 <= length <= sector or zlib.crc32(whole) != checksum:
        return None
    # Partitions far beyond the table's usual place are not in what we were given.
    table = start[lba * sector : lba * sector + count * size] if lba < LOOK_AT else b""
    if size < 128 or len(table) != count * size or zlib.crc32(table) != entries_checksum:
        return None
    return tuple(_entries(table, size))


def _entries(table: bytes, size: int) -> Iterator[_Entry]:
    for at in range(0, len(table), size):
        kind = UUID(bytes_le=table[at : at + 16])
        if kind.int:
            yield _Entry(kind, *struct.unpack_from("<Q", table, at + 48))
