"""What the first sectors of a disk say about how it boots."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qmpkit.images.boot import LOOK_AT, BootSigns, boot_signs
from qmpkit.testing.guests.boot_sector import boot_disk
from tests.unit.images.partitions import (
    BIOS_BOOT,
    ESP,
    LINUX,
    ROOT_ARM,
    ROOT_RISCV,
    ROOT_X86,
    partitioned,
)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize(
    ("parts", "code", "signs"),
    [
        ([f"type={ESP}", f"type={ROOT_X86}"], False, BootSigns(uefi=True, arch="x86_64")),
        ([f"type={ESP}", f"type={ROOT_ARM}"], False, BootSigns(uefi=True, arch="aarch64")),
        ([f"type={ESP}", f"type={ROOT_RISCV}"], False, BootSigns(uefi=True, arch="riscv64")),
        ([f"type={ROOT_X86}", f"type={ROOT_ARM}"], False, BootSigns()),
        ([f"type={ESP}", f"type={LINUX}"], False, BootSigns(uefi=True)),
        ([f"type={LINUX}"], True, BootSigns(bios=True)),
        ([f"type={LINUX}"], False, BootSigns()),
        # Boot code beside an ESP: somebody's habit, unless a loader's partition goes with it.
        ([f"type={ESP}", f"type={LINUX}"], True, BootSigns(uefi=True)),
        ([f"type={BIOS_BOOT}", f"type={ESP}"], True, BootSigns(bios=True, uefi=True)),
        ([f"type={ESP}", f'type={LINUX}, attrs="LegacyBIOSBootable"'], True, BootSigns(True, True)),
    ],
)
def test_gpt(parts: list[str], code: bool, signs: BootSigns, sector: int, tmp_path: Path) -> None:
    assert boot_signs(partitioned(tmp_path, "gpt", *parts, sector=sector, code=code)) == signs


@pytest.mark.parametrize(
    ("kind", "code", "signs"),
    [
        ("83", True, BootSigns(bios=True)),
        ("83", False, BootSigns()),
        ("ef", False, BootSigns(uefi=True)),
        ("ef", True, BootSigns(bios=True, uefi=True)),
    ],
)
def test_mbr(kind: str, code: bool, signs: BootSigns, tmp_path: Path) -> None:
    assert boot_signs(partitioned(tmp_path, "dos", f"type={kind}", code=code)) == signs


def test_a_damaged_gpt_does_not_count(tmp_path: Path) -> None:
    start = bytearray(partitioned(tmp_path, "gpt", f"type={ESP}", code=False))
    start[1024] ^= 1
    assert boot_signs(bytes(start)) == BootSigns()


def test_a_boot_sector_alone() -> None:
    assert boot_signs(boot_disk()) == BootSigns(bios=True)
    assert boot_signs(boot_disk()[:512]) == BootSigns(bios=True)
    assert boot_signs(boot_disk()[:511]) == BootSigns()


@pytest.mark.parametrize("bootable", [True, False])
def test_a_cd(bootable: bool) -> None:
    start = bytearray(LOOK_AT)
    start[32768:32774] = b"\1CD001"
    if bootable:
        record = b"\0CD001\1EL TORITO SPECIFICATION"
        start[34816 : 34816 + len(record)] = record
    assert boot_signs(bytes(start)) == BootSigns(bios=bootable, iso=True)


def gpt(lba: int, count: int, size: int, length: int, table: bytes) -> bytes:
    """A GPT whose header says these things, with the checksums right."""
    header = struct.pack("<8sIII", b"EFI PART", 0x10000, length, 0).ljust(72, b"\0")
    header += struct.pack("<QIII", lba, count, size, zlib.crc32(table))
    header = header.ljust(512, b"\0")
    checksum = zlib.crc32(header[:length])
    header = header[:16] + struct.pack("<I", checksum) + header[20:]
    mbr = bytes(450) + b"\xee" + bytes(59) + b"\x55\xaa"
    return mbr + header + table


u32 = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 92, 127, 128, 512])


@given(
    lba=st.integers(0, 2**64 - 1) | st.just(2), count=u32, size=u32, length=u32, table=st.binary()
)
@example(lba=2, count=1, size=128, length=92, table=bytes(128))
@example(lba=2, count=0, size=128, length=92, table=b"")
@example(lba=2, count=1, size=2**32 - 1, length=92, table=b"")
def test_lies_in_a_sound_header_do_no_harm(
    lba: int, count: int, size: int, length: int, table: bytes
) -> None:
    signs = boot_signs(gpt(lba, count, size, length, table))
    assert not signs.bios


@given(st.binary(max_size=2048), st.booleans())
def test_any_bytes_are_judged(start: bytes, signed: bool) -> None:
    if signed:
        start = start[:510].ljust(510, b"\0") + b"\x55\xaa" + start[512:]
    assert isinstance(boot_signs(start), BootSigns)
