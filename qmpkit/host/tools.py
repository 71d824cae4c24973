"""Programs beside QEMU that qmpkit runs."""

from __future__ import annotations

import shutil

from qmpkit.errors import BinaryMissing

__all__ = ["qemu_img"]


def qemu_img() -> str:
    """The path of qemu-img; blocking, `BinaryMissing` when it is not on PATH."""
    found = shutil.which("qemu-img")
    if found is None:
        raise BinaryMissing("qemu-img is not on PATH", "sudo apt install qemu-utils")
    return found
