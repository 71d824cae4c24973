"""The daemon's socket: where it is, and who may come in by it.

Its user alone: `<runtime>/.api/http`, 0600 in a directory 0700.  With a group its members
too: `/run/qmpkit-api/<farm>/http` (or beside the user's own runtime root), 0660 in a
directory 0750, since the runtime directory itself is closed to them.  There too is the
one that systemd opens, before there is a runtime directory; it removes that itself.
"""

from __future__ import annotations

import grp
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qmpkit.errors import HostLacks
from qmpkit.process.roots import root_by_rule, runtime_of
from qmpkit.process.sockets import listened_at, remover_of
from qmpkit.server.handed import checked_door

__all__ = ["BACKLOG", "doors", "hang_up", "opened_door", "shared_door"]

_FOLDER = ".api"
_SOCKET = "http"
BACKLOG = 512
"""Clients that may wait to be taken in; one more is refused, or waits if it can."""

_CURE = (
    "`systemctl restart` of the farm's service (`systemctl list-units 'qmpkit-*'`), or "
    "`systemctl stop` of its socket and service first"
)


def doors(farm: str) -> list[Path]:
    """Where the daemon of *farm* can be listening, the likelier place first.  Blocking."""
    own = runtime_of(farm)
    shared = shared_door(farm)
    return [shared] if own is None else [own / _FOLDER / _SOCKET, shared]


def shared_door(farm: str, root: Path | None = None) -> Path:
    """Where the socket is that a group or systemd has; *root*: of the runtime directories."""
    root = root or root_by_rule()
    return root.with_name(f"{root.name}-api") / farm / _SOCKET


@contextmanager
def opened_door(
    farm: str, runtime: Path, group: str | None, handed: int | None = None
) -> Iterator[tuple[socket.socket, Path]]:
    """The listening socket of the daemon, and its path; removed with the block.  Blocking.

    *handed* is the descriptor of one that systemd has opened and removes.  The supervisor's
    lock must be held: what is left there is of a daemon that was killed.
    Raises HostLacks.
    """
    path = runtime / _FOLDER / _SOCKET if group is None and handed is None else shared_door(farm)
    try:
        gid = None if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise HostLacks(f"there is no group {group!r}", "groupadd, or another name") from None
    if handed is None and group is not None and listened_at(path):
        raise HostLacks(f"{path} is listened at by somebody else, systemd perhaps", _CURE)
    # Of a killed daemon that listened there: clients would ask it first.
    shutil.rmtree(runtime / _FOLDER, ignore_errors=True)
    try:
        listener = _listening(path, gid) if handed is None else checked_door(handed, path, gid)
    except OSError as error:
        what = f"cannot listen in {path.parent}: {error.strerror}"
        raise HostLacks(what, "make it writable; to give it to a group takes its rights") from error
    remove = remover_of(path)  # systemd may have put its own there since
    try:
        yield listener, path
    finally:
        listener.close()
        if handed is None:
            remove()
            with suppress(OSError):
                path.parent.rmdir()


def hang_up(path: Path) -> None:
    """End every connection that has come in at *path*, also one whose client does not read.

    Those who wait to send there learn it at once.
    """
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the directory itself is among them, and gone by now
            if stat.S_ISSOCK(os.fstat(fd := int(entry.name)).st_mode):
                with socket.socket(fileno=os.dup(fd)) as sock:
                    _shut(sock, path)


def _shut(sock: socket.socket, path: Path) -> None:
    ours = sock.family == socket.AF_UNIX and sock.getsockname() == os.fspath(path)
    if ours and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.shutdown(socket.SHUT_RDWR)


def _listening(path: Path, gid: int | None) -> socket.socket:
    folder = path.parent
    shutil.rmtree(folder, ignore_errors=True)
    if gid is not None:
        folder.parent.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700)  # closed to all others until the socket is as it should be
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        if gid is None:
            path.chmod(0o600)
        else:
            os.chown(path, -1, gid)
            path.chmod(0o660)
            os.chown(folder, -1, gid)
            folder.chmod(0o750)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return listener
