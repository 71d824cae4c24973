"""A file of entries by name that is added to: of each name the last one counts.

A line an entry: the name, a tab, a text of one line; a name without a text is forgotten.
To add many is one write and one sync, and no file is made or removed for it.  Blocking.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from qmpkit.process.durable import sync, write_all, write_durably

__all__ = ["add", "compact", "entries_in", "mend"]


def add(path: Path, entries: Mapping[str, str | None]) -> int:
    """Add *entries* (None: forget it), all or none; they are safe on disk when this returns.

    Gives the bytes that the file has then.  Raises OSError: what was there before stands.
    """
    lines = (f"{name}\t{'' if text is None else text}\n" for name, text in entries.items())
    data = "".join(lines).encode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        try:
            write_all(fd, data)
            os.fdatasync(fd)
            if not size:
                sync(path.parent)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
    return size + len(data)


def entries_in(path: Path) -> dict[str, bytes]:
    """The texts by their names; none when there is no file.  Raises OSError.

    A last line without its end is no entry: its writer was killed.  Of one without a tab
    the name is lost; it is called "?".
    """
    found: dict[str, bytes] = {}
    with suppress(FileNotFoundError):
        for line in path.read_bytes().split(b"\n")[:-1]:
            name, tab, text = line.partition(b"\t")
            known = name.decode(errors="replace") if tab else "?"
            found.pop(known, None)
            if text or not tab:
                found[known] = text if tab else name
    return found


def mend(path: Path) -> None:
    """Cut off a last line without its end, before anything is added.  Raises OSError."""
    with suppress(FileNotFoundError):
        text = path.read_bytes()
        if (end := text.rfind(b"\n") + 1) != len(text):
            os.truncate(path, end)


def compact(path: Path) -> int:
    """Leave out what counts no longer; the bytes that are left.  Raises OSError."""
    entries = entries_in(path).items()
    text = b"".join(b"%b\t%b\n" % (name.encode(), text) for name, text in entries)
    write_durably(path, text)
    return len(text)
