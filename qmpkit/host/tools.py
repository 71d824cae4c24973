"""Programs beside QEMU that qmpkit runs."""

from __future__ import annotations

import shutil

from qmpkit.errors import BinaryMissing

__all__ = ["BUILD_PROGRAMS", "BUILD_WITHOUT_ROOT", "qemu_img", "storage_daemon"]

BUILD_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "tar": "tar",
}
"""What builds a Debian image, and Debian's packages with it."""

BUILD_WITHOUT_ROOT = {"newuidmap": "uidmap"}
"""What an ordinary user needs for it beside those."""


def qemu_img() -> str:
    """The path of qemu-img; blocking, `BinaryMissing` when it is not on PATH."""
    found = shutil.which("qemu-img")
    if found is None:
        raise BinaryMissing("qemu-img is not on PATH", "sudo apt install qemu-utils")
    return found


def storage_daemon() -> str:
    """The path of qemu-storage-daemon; blocking, `BinaryMissing` when it is not on PATH."""
    found = shutil.which("qemu-storage-daemon")
    if found is None:
        raise BinaryMissing("qemu-storage-daemon is not on PATH", "sudo apt install qemu-utils")
    return found
