"""Variables as a UEFI firmware keeps them, written by hand."""

from __future__ import annotations

import struct
import uuid

__all__ = ["GLOBAL", "variable"]

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")


def variable(
    name: str, vendor: uuid.UUID = GLOBAL, *, state: int = 0x3F, data: bytes = b"key"
) -> bytes:
    """An authenticated variable, as EDK II has it; 0x3F is one that counts."""
    text = f"{name}\0".encode("utf-16-le")
    head = struct.pack("<HBBIQ16sIII", 0x55AA, state, 0, 7, 0, b"", 0, len(text), len(data))
    return head + vendor.bytes_le + text + data
