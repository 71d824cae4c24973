"""Whether a store of UEFI variables holds a platform key: without one Secure Boot is off.

The layout is EDK II's for authenticated variables (MdeModulePkg's VariableFormat.h): each
has a header of 60 bytes, which ends in the vendor's GUID, and then its name in UTF-16.
"""

from __future__ import annotations

import uuid
from pathlib import Path

__all__ = ["has_platform_key"]

_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_NAMED = _GLOBAL + "PK\0".encode("utf-16-le")
_GUID_OFFSET = 44
_START = b"\xaa\x55"
_VALID = (0x3F, 0x3E)  # written; and about to be replaced by another that is not written yet
_STORE = 1 << 20  # the variables are at the start of the chip, in less than that


def has_platform_key(store: Path) -> bool:
    """Whether the raw *store* has a PK that counts; blocking, raises OSError.

    False for what is no such store, so compare with one that is known to have it.
    """
    with store.open("rb") as file:
        content = file.read(_STORE)
    at = content.find(_NAMED)
    while at >= 0:
        start = at - _GUID_OFFSET
        if start >= 0 and content[start : start + 2] == _START and content[start + 2] in _VALID:
            return True
        at = content.find(_NAMED, at + 1)
    return False
