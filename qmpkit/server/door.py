"""The daemon's socket: where it is, and who may come in by it.

Its user alone: `<runtime>/.api/http`, 0600 in a directory 0700.  With a group its members
too: `/run/qmpkit-api/<farm>/http` (or beside the user's own runtime root), 0660 in a
directory 0750, since the runtime directory itself is closed to them.
"""

from __future__ import annotations

import grp
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qmpkit.errors import HostLacks
from qmpkit.process.roots import root_by_rule, runtime_of

__all__ = ["doors", "opened_door"]

_FOLDER = ".api"
_SOCKET = "http"
_BACKLOG = 512


def doors(farm: str) -> list[Path]:
    """Where the daemon of *farm* can be listening, the likelier place first.  Blocking."""
    own = runtime_of(farm)
    shared = _shared(farm) / _SOCKET
    return [shared] if own is None else [own / _FOLDER / _SOCKET, shared]


def _shared(farm: str) -> Path:
    root = root_by_rule()
    return root.with_name(f"{root.name}-api") / farm


@contextmanager
def opened_door(
    farm: str, runtime: Path, group: str | None
) -> Iterator[tuple[socket.socket, Path]]:
    """The listening socket of the daemon, and its path; removed with the block.  Blocking.

    The supervisor's lock must be held: what is left there is of a daemon that was killed.
    Raises HostLacks.
    """
    folder = runtime / _FOLDER if group is None else _shared(farm)
    try:
        gid = None if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise HostLacks(f"there is no group {group!r}", "groupadd, or another name") from None
    try:
        listener = _listening(folder, gid)
    except OSError as error:
        what = f"cannot listen in {folder}: {error.strerror}"
        raise HostLacks(what, "make it writable; to give it to a group takes its rights") from error
    try:
        yield listener, folder / _SOCKET
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


def _listening(folder: Path, gid: int | None) -> socket.socket:
    shutil.rmtree(folder, ignore_errors=True)
    if gid is not None:
        folder.parent.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700)  # closed to all others until the socket is as it should be
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = folder / _SOCKET
        listener.bind(os.fspath(path))
        if gid is None:
            path.chmod(0o600)
        else:
            os.chown(path, -1, gid)
            path.chmod(0o660)
            os.chown(folder, -1, gid)
            folder.chmod(0o750)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return listener
