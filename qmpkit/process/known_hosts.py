"""The keys by which ssh knows a farm's guests again, in a file of the farm's own.  Blocking."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from contextlib import suppress
from pathlib import Path

from qmpkit.process.durable import write_durably
from qmpkit.process.roots import hash_of

__all__ = ["alias_of", "forget_key", "known_hosts_in"]

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_HASHED = "|1|"
"""Before a name that is hashed, as Debian's ssh writes it: |1|SALT|HMAC."""


def known_hosts_in(state: Path) -> Path:
    """The file, in the farm's state directory.  Pure."""
    return state / "known_hosts"


def alias_of(name: str) -> str:
    """The machine's name, or one like it that ssh takes for a host's and a line can hold.  Pure."""
    return name if _HOST.fullmatch(name) else f"qk-{hash_of(name)}"


def forget_key(file: Path, name: str) -> None:
    """Forget the key of a machine that is no more: who comes by its name has another.  OSError."""
    with suppress(FileNotFoundError):
        lines = file.read_bytes().splitlines(keepends=True)
        left = [line for line in lines if not _is_of(line, alias_of(name))]
        if left != lines:
            write_durably(file, b"".join(left))


def _is_of(line: bytes, alias: str) -> bool:
    name = line.partition(b" ")[0].decode(errors="replace")
    if not name.startswith(_HASHED):
        return name == alias
    salt, _, digest = name.removeprefix(_HASHED).partition("|")
    try:
        made = hmac.digest(binascii.a2b_base64(salt), alias.encode(), hashlib.sha1)
        return hmac.compare_digest(made, binascii.a2b_base64(digest))
    except ValueError:  # no line of ssh's
        return False
