"""The keys by which ssh knows a farm's guests again, in a file of the farm's own.  Blocking."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from qmpkit.cli.talk import talk
from qmpkit.process.durable import write_durably
from qmpkit.process.roots import state_root

__all__ = ["forget_keys", "known_hosts_of"]

_HASHED = "|1|"
"""Before a name that is hashed, as Debian's ssh writes it: |1|SALT|HMAC."""


def known_hosts_of(farm: str) -> Path:
    """The file."""
    return state_root() / farm / "known_hosts"


def forget_keys(farm: str, aliases: Collection[str]) -> None:
    """Forget the keys of guests that are no more: who comes by the same name has another."""
    file = known_hosts_of(farm)
    try:
        with suppress(FileNotFoundError):
            lines = file.read_bytes().splitlines(keepends=True)
            left = [line for line in lines if not any(_is_of(line, alias) for alias in aliases)]
            if left != lines:
                write_durably(file, b"".join(left))
    except OSError as error:
        talk.warn(f"ssh keys of guests that are no more stay in {file}: {error.strerror}")


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
