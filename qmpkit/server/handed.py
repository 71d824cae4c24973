"""The listening socket that systemd opened for us (LISTEN_FDS), taken only if it is our door.

A socket at another path, or open to others than it should be, is refused: clients would
look elsewhere, or strangers come in.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from qmpkit.errors import HostLacks

__all__ = ["checked_door", "handed_over"]

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_CURE = "use both units as `qmpkit systemd` prints them"


def handed_over() -> int | None:
    """The descriptor that systemd passed to this process; None when it passed none.

    Asked once: no process that we start inherits the descriptor or is told of it.
    Raises HostLacks for more than one.
    """
    told = {name: os.environ.pop(name, "") for name in _VARIABLES}
    if told["LISTEN_PID"] != str(os.getpid()) or not told["LISTEN_FDS"].isdecimal():
        return None
    count = int(told["LISTEN_FDS"])
    for fd in range(_FIRST, _FIRST + count):
        os.set_inheritable(fd, False)
    if count > 1:
        raise HostLacks(f"systemd passed {count} sockets, and a farm has one", _CURE)
    return _FIRST if count else None


def checked_door(fd: int, path: Path, gid: int | None) -> socket.socket:
    """The listening unix socket *fd* as an object of its own, when it is the door at *path*.

    *gid*: the group it must be open to, None: to nobody.  Raises HostLacks, OSError.
    """
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise HostLacks("what systemd passed is no socket", _CURE)
    door = socket.socket(fileno=os.dup(fd))
    try:
        problem = _problem(door, path) or _mode_problem(path, gid)
    except OSError:
        door.close()
        raise
    if problem:
        door.close()
        raise HostLacks(f"the socket that systemd passed {problem}", _CURE)
    return door


def _problem(door: socket.socket, path: Path) -> str:
    if door.family != socket.AF_UNIX or door.type != socket.SOCK_STREAM:
        return "is no stream socket of a path"
    if not door.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen"
    if (found := door.getsockname()) != os.fspath(path):
        return f"is at {found!r}, not at {os.fspath(path)!r}"
    return ""


def _mode_problem(path: Path, gid: int | None) -> str:
    wanted = 0o600 if gid is None else 0o660
    if not path.is_socket():
        return f"is no longer at {path}"
    found = path.lstat()
    if (mode := stat.S_IMODE(found.st_mode)) != wanted:
        return f"has the mode {mode:04o}, not {wanted:04o}"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to us"
    if gid is not None and found.st_gid != gid:
        return f"is open to group {found.st_gid}, not to {gid}"
    folder = path.parent.stat()
    if folder.st_mode & 0o022 or folder.st_uid not in (0, os.geteuid()):
        return f"is in {path.parent}, where others can put another in its place"
    return ""
