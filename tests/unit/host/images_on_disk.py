"""Image files written by hand: a header and no more, so that no program is needed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

__all__ = ["qcow2", "raw"]

_DATA_FILE_BIT = 4
_HEADER_LENGTH = 104
_NAME_AT = 1024


def raw(path: Path, content: bytes = bytes(4096)) -> Path:
    path.write_bytes(content)
    return path


def qcow2(
    path: Path,
    backing: str = "",
    *,
    backing_format: str = "",
    data_file: str = "",
    size: int = 0,
    version: int = 3,
) -> Path:
    name = os.fsencode(backing)
    start = _NAME_AT if name else 0
    head = b"QFI\xfb" + struct.pack(">IQIIQ", version, start, len(name), 16, size)
    if version >= 3:
        head = head.ljust(72, b"\0") + struct.pack(">Q", _DATA_FILE_BIT if data_file else 0)
        head = head.ljust(100, b"\0") + struct.pack(">I", _HEADER_LENGTH)
    else:
        head = head.ljust(72, b"\0")
    for kind, text in ((0xE2792ACA, backing_format), (0x44415441, data_file)):
        if text:
            value = os.fsencode(text)
            head += struct.pack(">II", kind, len(value)) + value.ljust(
                -(-len(value) // 8) * 8, b"\0"
            )
    path.write_bytes(head.ljust(_NAME_AT, b"\0") + name + bytes(1024))
    return path
