"""Who on this host holds a file or a port: the name behind "it is in use"."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import attrs

__all__ = [
    "Holder",
    "allow_writing",
    "deny_writing",
    "file_locked",
    "holders_of",
    "image_locked",
    "machine_in",
    "processes_with",
    "socket_inodes",
]

# QEMU marks what it does with an image by locks on single bytes: 100 + permission for what it
# holds, 200 + permission for what it denies to others.  Permission 1 is writing.
_HOLDS_WRITE = 101
_DENIES_WRITE = 201
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, pid


def image_locked(path: str | os.PathLike[str], *, for_writing: bool) -> bool:
    """Whether a QEMU program has *path* open so that we may not use it; blocking, raises OSError.

    Another writer always locks us out; for writing, so does a reader that relies
    on the content (the base of a running overlay).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return file_locked(fd, for_writing=for_writing)
    finally:
        os.close(fd)


def file_locked(fd: int, *, for_writing: bool) -> bool:
    """`image_locked`, for a descriptor: its own locks do not count."""
    if _byte_locked(fd, _HOLDS_WRITE):
        return True
    return for_writing and _byte_locked(fd, _DENIES_WRITE)


def deny_writing(fd: int) -> None:
    """Have QEMU programs refuse to open the file behind *fd* for writing, until it is closed.

    It keeps out who comes; who writes already is told by `file_locked`, asked afterwards.
    Any descriptor will do that can read.  Raises OSError.
    """
    _lock(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, _DENIES_WRITE)


def allow_writing(fd: int) -> None:
    """Take back `deny_writing`, though a child that was forked may have a copy of *fd* yet."""
    _lock(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _DENIES_WRITE)


def _byte_locked(fd: int, byte: int) -> bool:
    return _lock(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK


def _lock(fd: int, command: int, kind: int, byte: int) -> int:
    """The kernel's answer: the kind of lock."""
    asked = struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)
    try:
        told: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, command, asked))[0]
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):
            return fcntl.F_UNLCK  # this file system has no locks, so QEMU could take none either
        raise
    return told


@attrs.frozen
class Holder:
    """A process that has a file open; `machine` is the guest's name, when it is a QEMU with one."""

    pid: int
    program: str
    machine: str = ""

    def __str__(self) -> str:
        if self.machine:
            return f"machine {self.machine!r} ({self.program}, pid {self.pid})"
        return f"{self.program} (pid {self.pid})"


def holders_of(path: str | os.PathLike[str], root: Path = Path("/")) -> tuple[Holder, ...]:
    """Each process that has the file at *path* open, under whatever name; blocking.

    Only processes we may look into are seen.  A few ms with hundreds of processes:
    for error messages and for images known to be in use.
    """
    try:
        wanted = Path(path).stat()
    except OSError:
        return ()
    identity = wanted.st_dev, wanted.st_ino
    return tuple(_holder(process) for process in _processes(root) if identity in _files(process))


def processes_with(target: str, root: Path = Path("/")) -> list[str]:
    """`name (pid N)` of each process with an open fd that links to *target*; blocking.

    *target* is what the link says: `socket:[inode]`, as a rule.  Sees and costs what
    `holders_of` does.
    """
    return [
        str(_holder(process))
        for process in _processes(root)
        if any(link == target for link in _links(process))
    ]


def _files(process: Path) -> Iterator[tuple[int, int]]:
    try:
        for fd in (process / "fd").iterdir():
            with suppress(OSError):  # closed in this moment
                found = fd.stat()
                yield found.st_dev, found.st_ino
    except OSError:
        return  # it ended, or it is not ours to look into


def _processes(root: Path) -> Iterator[Path]:
    numbers = (entry for entry in (root / "proc").iterdir() if entry.name.isdigit())
    yield from sorted(numbers, key=lambda entry: int(entry.name))


def _links(process: Path) -> Iterator[str]:
    try:
        for fd in (process / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed in this moment
                yield str(fd.readlink())
    except OSError:
        return  # it ended, or it is not ours to look into


def _holder(process: Path) -> Holder:
    try:
        argv = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
        comm = (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return Holder(int(process.name), "a process")
    program = argv[0].rpartition("/")[2]
    if not program.startswith("qemu-"):  # the kernel cuts off a long name, but nobody makes it up
        return Holder(int(process.name), comm)
    return Holder(int(process.name), program, machine_in(argv))


def machine_in(argv: list[str]) -> str:
    """The guest's name of `-name web,process=x` or `-name guest=web`; a comma in it is doubled."""
    for option, value in pairwise(argv):
        if option in ("-name", "--name"):
            words = value.replace(",,", "\0").split(",")
            named = [word for word in words if word.startswith("guest=")] or words[:1]
            return named[0].removeprefix("guest=").replace("\0", ",")
    return ""


def socket_inodes(protocol: str, port: int, root: Path = Path("/")) -> list[str]:
    """`socket:[inode]` of each socket bound to *port*; *protocol* is `tcp` or `udp`; blocking."""
    found = []
    for table in (protocol, protocol + "6"):
        for row in _rows(root / "proc/net" / table):
            local, state, inode = row[1], row[3], row[9]
            # A TCP port is taken by a listener (0A); UDP has no such state.
            if int(local.rpartition(":")[2], 16) == port and (protocol == "udp" or state == "0A"):
                found.append(f"socket:[{inode}]")
    return found


def _rows(table: Path) -> Iterator[list[str]]:
    try:
        text = table.read_text()
    except OSError:
        return
    for line in text.splitlines()[1:]:
        row = line.split()
        if len(row) > 9:
            yield row
