"""Files that are old or new and never in between, also after the power is lost.  Blocking."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["DRAFT", "draft", "publish", "sync", "write_all", "write_durably"]

DRAFT = ".draft"
"""What the name of a file ends in that is being written."""


def write_durably(path: Path, text: str | bytes | None) -> None:
    """Put *text* at *path* (None: remove it), whole and safe on disk.  Blocking; OSError."""
    draft(path.with_name(path.name + DRAFT), text)
    publish(path, text)
    sync(path.parent)


def draft(path: Path, text: str | bytes | None) -> None:
    """Write *text* to a draft's path, safe on disk; one that cannot be is removed again."""
    if text is None:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        write_all(fd, text.encode() if isinstance(text, str) else text)
        os.fsync(fd)
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of *data*."""
    # Not by a file object: each of its system calls would wait for Python's lock anew.
    while data:
        data = data[os.write(fd, data) :]


def publish(path: Path, text: str | bytes | None) -> None:
    """Let the draft of *path* take its place; safe once the directory is synced."""
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.with_name(path.name + DRAFT).replace(path)


def sync(directory: Path) -> None:
    """Have the names in *directory* safe on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
