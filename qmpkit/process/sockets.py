"""Unix sockets that we bind ourselves and hand to QEMU already listening."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qmpkit.errors import Fault, HostLacks, SpecInvalid

__all__ = ["listened_at", "listening_socket", "remover_of"]


def listening_socket(path: Path) -> socket.socket:
    """A socket that listens at *path* with mode 0600; connecting before that is refused.

    Raises SpecInvalid when *path* exists or is too long for a socket, HostLacks when
    its directory cannot be written.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind(sock, path)
        try:
            # Nobody can connect before listen(), so nobody sees the mode that bind() gave it.
            path.chmod(0o600)
            sock.listen(1)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def listened_at(path: Path, patience: float = 0.0) -> bool:
    """Whether somebody listens at *path*, and still does after *patience* seconds.

    Blocking.  One whose queue is full listens.
    """
    deadline = time.monotonic() + patience
    # One that ends may close what it has taken in before it closes the listener; whoever
    # comes then is not taken in any more.
    return _lasts(path, patience) or (
        patience > 0 and _lasts(path, max(0.0, deadline - time.monotonic()))
    )


def _lasts(path: Path, patience: float) -> bool:
    """Whether a connection to *path* can be had, and lasts *patience* seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        end = select.poll()  # of the listener, which is the end of whom it has not taken in, too
        end.register(sock, select.POLLRDHUP)
        return not end.poll(patience * 1000)


def remover_of(path: Path) -> Callable[[], None]:
    """What removes the file that is at *path* now, and nothing that has come to its place.

    QEMU removes its sockets when it ends, and the next machine may have made one there.
    """
    place = path.absolute()
    made = _identity(place)

    def remove() -> None:
        with suppress(OSError):
            if _identity(place) == made:
                place.unlink()

    return remove


def _identity(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return (found.st_dev, found.st_ino, found.st_ctime_ns)


def _bind(sock: socket.socket, path: Path) -> None:
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fault = Fault(str(path), "this path exists", "remove it or name another")
            raise SpecInvalid([fault]) from error
        if error.errno is None:  # Python's own check of the length
            fault = Fault(str(path), "too long for a socket: 107 bytes are possible")
            raise SpecInvalid([fault]) from error
        cure = f"mkdir -p {path.parent}" if error.errno == errno.ENOENT else ""
        raise HostLacks(f"cannot make the socket {path}: {error.strerror}", cure) from error
