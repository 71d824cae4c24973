"""Disks as sfdisk partitions them, with and without boot code."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qmpkit.images.boot import LOOK_AT

__all__ = ["BIOS_BOOT", "ESP", "LINUX", "ROOT_ARM", "ROOT_RISCV", "ROOT_X86", "partitioned"]

ESP, LINUX, BIOS_BOOT = "U", "L", "21686148-6449-6E6F-744E-656564454649"
ROOT_X86, ROOT_ARM = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"
ROOT_RISCV = "72EC70A6-CF74-40E6-BD49-4BDA08E8F224"
SFDISK = shutil.which("sfdisk", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def partitioned(folder: Path, label: str, *parts: str, sector: int = 512, code: bool) -> bytes:
    """The start of a disk as sfdisk partitions it, with or without boot code."""
    if SFDISK is None:
        pytest.skip("needs sfdisk")
    disk = folder / "disk"
    disk.write_bytes(b"")
    os.truncate(disk, 64 << 20)
    script = f"label: {label}\n" + "".join(f"size=8MiB, {part}\n" for part in parts)
    argv = [SFDISK, "-q", "--no-tell-kernel", str(disk)]  # which would sleep for 250 ms
    subprocess.run(argv, input=script, text=True, check=True, capture_output=True, timeout=20)
    with disk.open("rb") as file:
        start = file.read(LOOK_AT)
    if sector == 4096:  # sfdisk asks the device, and a file has no such sectors
        start = _in_sectors_of_4096(start)
    return (b"\xeb\x63\x90" + start[3:]) if code else start


def _in_sectors_of_4096(start: bytes) -> bytes:
    """The same header and entries in sectors 1 and 2 and on, where they say they are."""
    table = start[1024 : 1024 + 128 * 128]
    return (start[:512].ljust(4096, b"\0") + start[512:1024].ljust(4096, b"\0") + table).ljust(
        LOOK_AT, b"\0"
    )
