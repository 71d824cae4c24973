"""The runtime directory: where the sockets of running machines are, for nobody's eyes but ours.

    <root>/<name>.<pid>.<random>/<socket>

The root is `$QMPKIT_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/qmpkit` (for root unless it is
that of a login), else `/run/qmpkit` for root, else `/tmp/qmpkit-<uid>`.  Every part has a greatest
length, so that a socket's path always fits the 107 bytes the kernel takes.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from qmpkit.errors import HostLacks
from qmpkit.process.held_dirs import HeldDir, hold_new_dir, sweep
from qmpkit.process.roots import root_by_rule

__all__ = ["machine_dir", "owner_of", "runtime_root", "socket_path", "verify"]

SOCKET_PATH_LIMIT = 107
NAME_LIMIT = 10
SOCKET_NAME_LIMIT = 20
# "/name.pid.rand/socket": a pid has at most seven digits.
ROOT_LIMIT = SOCKET_PATH_LIMIT - (1 + NAME_LIMIT + 1 + 7 + 1 + 4) - (1 + SOCKET_NAME_LIMIT)

REMOVE_GRACE = 5.0
"""Seconds that removing a machine's directory may take."""

_DIRECTORY = re.compile(r"[A-Za-z0-9_-]+\.([0-9]+)\.[0-9a-f]{4}")
_swept: set[Path] = set()


def runtime_root() -> Path:
    """The verified root, made (0700) if it is missing.

    Raises `HostLacks` when it cannot be made, is a symbolic link, belongs to
    another user, is writable by others, or is too long for socket paths.
    Does a few quick system calls.
    """
    root = root_by_rule()
    if len(os.fsencode(root)) > ROOT_LIMIT:
        raise HostLacks(
            f"the runtime directory {root} is longer than {ROOT_LIMIT} bytes, "
            "so the paths of sockets in it would be too long",
            "set QMPKIT_RUNTIME_DIR to a shorter path",
        )
    verify(root)
    return root


def verify(
    root: Path, what: str = "runtime directory", variable: str = "QMPKIT_RUNTIME_DIR"
) -> None:
    """Make the directory (0700) if it is missing, and refuse one that is not ours alone.

    *what* it is and the *variable* that moves it are for the `HostLacks` raised.
    """
    cure = f"remove it, or set {variable} to a directory of your own"
    try:
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        found = root.lstat()
    except OSError as error:
        raise HostLacks(f"cannot make the {what} {root}: {error.strerror}", cure) from error
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a directory"
        raise HostLacks(f"the {what} {root} is {kind}", cure)
    if found.st_uid != os.geteuid():
        raise HostLacks(f"the {what} {root} belongs to user {found.st_uid}, not to us", cure)
    if found.st_mode & 0o022:
        raise HostLacks(f"the {what} {root} is writable by others", f"chmod 700 {root}")


def socket_path(directory: Path, name: str) -> Path:
    """The path of the socket *name* (20 bytes at most, like "qmp") in a machine's directory."""
    if not name or "/" in name or len(os.fsencode(name)) > SOCKET_NAME_LIMIT:
        raise ValueError(
            f"a socket's name has 1 to {SOCKET_NAME_LIMIT} bytes and no slash: {name!r}"
        )
    path = directory / name
    assert len(os.fsencode(path)) <= SOCKET_PATH_LIMIT
    return path


@asynccontextmanager
async def machine_dir(name: str) -> AsyncIterator[Path]:
    """A new directory (0700) for one run of the machine *name*, removed with the block.

    Two machines of one name get two directories.  What a killed program left
    is removed when the next one makes its first.  Raises `HostLacks`.
    Cancellation: the directory is removed.
    """
    limiter = trio.CapacityLimiter(1)  # threads stuck in a slow disk must not hold this up
    held = await trio.to_thread.run_sync(_make, name, limiter=limiter)
    try:
        yield held.path
    finally:
        with trio.move_on_after(REMOVE_GRACE, shield=True):
            await trio.to_thread.run_sync(held.remove, limiter=limiter, abandon_on_cancel=True)


def _make(name: str) -> HeldDir:
    root = runtime_root()
    if root not in _swept:
        _swept.add(root)
        sweep(root, _DIRECTORY)
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:NAME_LIMIT] or "vm"
    return hold_new_dir(root, lambda: f"{slug}.{os.getpid()}.{secrets.token_hex(2)}")


def owner_of(directory: Path) -> int | None:
    """The process that made a machine's directory; None when it is not one."""
    match = _DIRECTORY.fullmatch(directory.name)
    return int(match[1]) if match else None
