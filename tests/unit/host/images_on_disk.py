"""Image files written by hand: a header and no more, so that no program is needed."""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["qcow2", "raw"]


def raw(path: Path, content: bytes = bytes(4096)) -> Path:
    path.write_bytes(content)
    return path


def qcow2(path: Path, backing: str = "") -> Path:
    name = backing.encode()
    offset = 512 if name else 0
    head = b"QFI\xfb" + struct.pack(">IQI", 3, offset, len(name))
    path.write_bytes(head.ljust(512, b"\0") + name + bytes(1024))
    return path
