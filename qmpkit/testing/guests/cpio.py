"""An initramfs from a table of entries: the newc form of cpio, byte for byte repeatable."""

from __future__ import annotations

import stat
from collections.abc import Iterable

import attrs

__all__ = ["Entry", "archive", "device", "directory", "link", "regular"]


@attrs.frozen
class Entry:
    """One thing in the archive, owned by root, dated 1970.

    `mode` is the full st_mode; `data` is a file's content or a link's target;
    `number` is a device node's (major, minor).
    """

    path: str
    mode: int
    data: bytes = b""
    number: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(path, stat.S_IFDIR | mode)


def regular(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A file."""
    return Entry(path, stat.S_IFREG | mode, data)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device."""
    return Entry(path, stat.S_IFCHR | mode, number=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The cpio archive of *entries*, sorted by path, every parent directory made.

    The same entries in any order give the same bytes.  Raises ValueError when a
    path appears twice or is not relative and clean.
    """
    table: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in table:
            raise ValueError(f"{entry.path!r} is in the archive twice")
        if entry.path.startswith("/") or ".." in entry.path.split("/") or not entry.path:
            raise ValueError(f"{entry.path!r} is not a relative, clean path")
        table[entry.path] = entry
    for path in list(table):
        for parent in _parents(path):
            table.setdefault(parent, directory(parent))
    # A directory sorts before what it holds, because its path is a prefix.
    packed = [_pack(inode, table[path]) for inode, path in enumerate(sorted(table), start=1)]
    packed.append(_pack(0, Entry("TRAILER!!!", 0)))
    return b"".join(packed)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _pack(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime
        len(entry.data),
        0,  # the archive's own device, major and minor
        0,
        *entry.number,
        len(name),
        0,  # checksum, unused in newc
    )
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
