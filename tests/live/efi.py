"""A disk that only UEFI boots: an EFI system partition with a program of a few bytes on it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

__all__ = ["EFI_BANNER", "efi_disk"]

EFI_BANNER = "a program on an EFI system partition"
_OFFSET = 1 << 20  # where sfdisk puts the first partition

_CODE = bytes.fromhex(
    "48 8d 35 0e 00 00 00"  # lea rsi, [banner]
    "66 ba f8 03"  # mov dx, COM1
    "ac 84 c0 74 03"  # next: lodsb; test al, al; jz halt
    "ee eb f8"  # out dx, al; jmp next
    "f4 eb fd"  # halt: hlt; jmp halt
)


def efi_program() -> bytes:
    """A PE32+ image that prints the banner on COM1 and waits for ever."""
    section = (_CODE[:3] + struct.pack("<i", len(_CODE) - 7) + _CODE[7:]) + EFI_BANNER.encode()
    section = (section + b"\r\n").ljust(512, b"\0")
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x0222)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, 512, 0, 0, 0x1000, 0x1000)
    optional += struct.pack("<QII6HIIII", 0, 0x1000, 512, 0, 0, 0, 0, 0, 0, 0, 0x2000, 512, 0)
    efi_application = 10
    optional += struct.pack("<HH4QII", efi_application, 0, 0, 0, 0, 0, 0, 16) + bytes(128)
    text = struct.pack("<8sIIIIIIHHI", b".text", 512, 0x1000, 512, 512, 0, 0, 0, 0, 0x60000020)
    return (dos + coff + optional + text).ljust(512, b"\0") + section


def efi_disk(path: Path) -> Path:
    """A raw disk at *path* with the program where firmware looks on a disk it does not know."""
    places = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    tools = {name: shutil.which(name, path=places) for name in ("sfdisk", "mformat", "mcopy")}
    if missing := [name for name, found in tools.items() if found is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    path.write_bytes(b"")
    os.truncate(path, 48 << 20)
    table = "label: gpt\nsize=40MiB, type=U\n"
    _run([tools["sfdisk"], "-q", "--no-tell-kernel", str(path)], table)
    program = path.with_name("BOOTX64.EFI")
    program.write_bytes(efi_program())
    volume = f"{path}@@{_OFFSET}"
    _run([tools["mformat"], "-i", volume, "-T", str((40 << 20) // 512), "::"])
    for folder in ("::EFI", "::EFI/BOOT"):
        _run([shutil.which("mmd"), "-i", volume, folder])
    _run([tools["mcopy"], "-i", volume, str(program), "::EFI/BOOT/BOOTX64.EFI"])
    program.unlink()
    return path


def _run(argv: list[str | None], given: str = "") -> None:
    words = [word for word in argv if word is not None]
    subprocess.run(words, input=given, text=True, check=True, capture_output=True, timeout=20)
