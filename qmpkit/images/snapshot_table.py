"""The snapshots that a qcow2 lists, read without running anything.  Blocking."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from qmpkit.images.details import Snapshot
from qmpkit.images.tool import Asked

__all__ = ["listed", "read_snapshots", "refuse_snapshots", "the_one"]

_MOST, _LARGEST = 65536, 64 << 20  # what QEMU takes, in number and in bytes
_ENTRY = struct.Struct(">QIHHIIQII")


def read_snapshots(path: Path) -> tuple[Snapshot, ...]:
    """The snapshots of the qcow2 at *path*, which nobody changes meanwhile.

    Raises OSError, and ValueError when the list is not one that QEMU would take.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = os.pread(fd, 72, 0)
        if len(start) < 72 or not start.startswith(b"QFI\xfb"):
            raise ValueError("it is not qcow2")
        count, at = struct.unpack_from(">IQ", start, 60)
        if count > _MOST or at >= 1 << 62:
            raise ValueError("its list of snapshots is damaged")
        return _entries(os.pread(fd, _LARGEST if count else 0, at), count)
    finally:
        os.close(fd)


def _entries(table: bytes, count: int) -> tuple[Snapshot, ...]:
    found, at = [], 0
    for _ in range(count):
        if at + _ENTRY.size > len(table):
            raise ValueError("its list of snapshots is cut off")
        entry = _ENTRY.unpack_from(table, at)
        _, _, id_size, name_size, seconds, nanos, clock, state, extra = entry
        at += _ENTRY.size
        if extra >= 8:  # the size of the state again, in more bits
            (state,) = struct.unpack_from(">Q", table[at : at + 8].ljust(8, b"\0"))
        at += extra
        id = table[at : at + id_size].decode(errors="replace")
        at += id_size
        name = os.fsdecode(table[at : at + name_size])
        at += name_size
        found.append(Snapshot(id, name, state, seconds + nanos / 1e9, clock / 1e9))
        at = -(-at // 8) * 8
    return tuple(found)


def listed(asked: Asked, format: str) -> tuple[Snapshot, ...]:
    """The snapshots of the image; `ImageFailed` when it can have none."""
    if format != "qcow2":
        raise asked.failed(f"{format} images have no snapshots", "convert it to qcow2")
    try:
        return read_snapshots(asked.path)
    except OSError as error:
        raise asked.failed_by(error) from error
    except ValueError as error:
        raise asked.failed(str(error), "look at it with check") from error


def refuse_snapshots(asked: Asked, format: str) -> None:
    """`ImageFailed` when a snapshot in the image would show another base than it was taken on."""
    if format == "qcow2" and (found := listed(asked, format)):
        raise asked.failed(
            f"it has snapshots ({_known(found)}), which would show what the base becomes",
            "convert(snapshot=…) (--snapshot) copies one; then delete them",
        )


def the_one(asked: Asked, snapshots: Sequence[Snapshot], wanted: str) -> Snapshot:
    """The snapshot that *wanted* names, or else the one with that id; `ImageFailed` for none."""
    named = [found for found in snapshots if found.name == wanted]
    named = named or [found for found in snapshots if found.id == wanted]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(found.id for found in named)
        raise asked.failed(f"it has several snapshots {wanted!r}", f"name one by its id: {ids}")
    raise asked.failed(f"it has no snapshot {wanted!r}, but {_known(snapshots)}")


def _known(snapshots: Sequence[Snapshot]) -> str:
    names = ", ".join(repr(found.name) for found in snapshots[:5])
    more = ", …" if len(snapshots) > 5 else ""
    return f"{names}{more}" if names else "none at all"
