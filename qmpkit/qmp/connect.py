"""To the monitor of a QEMU that somebody else started.

A monitor serves one client.  While it is held, QEMU's listening socket still
takes a few more connections and leaves them without a greeting; the next one is
turned away by the kernel.  So silence has two meanings, which need two cures.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from qmpkit._trio import check_trio
from qmpkit.qmp.errors import MonitorAbsent, MonitorBusy, MonitorSilent
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Observer, Session

__all__ = ["connect"]

BUSY_CURE = (
    "end the other client, or start QEMU with a second monitor"
    " (-qmp unix:PATH,server=on,wait=off) and give its path as `second`"
)
SILENT_CURE = (
    "QEMU is stopped or stuck: look at its state (ps, /proc/PID/stack) and end it with a signal"
)
ACCEPTED, QUEUED = "03", "02"  # the states of a listener's connections in /proc/net/unix

_RETRY = 0.02  # seconds between two tries to connect to a full queue

StrPath = str | os.PathLike[str]


@asynccontextmanager
async def connect(
    path_or_socket: StrPath | socket.socket,
    *,
    second: StrPath | None = None,
    name: str | None = None,
    greeting_timeout: float = 2.0,
    observer: Observer | None = None,
) -> AsyncIterator[Session]:
    """A session with a running QEMU, by its monitor's unix socket or a connected socket.

    When the monitor does not take us within *greeting_timeout* seconds, or does not
    greet within as many, *second*, the path of the same QEMU's second monitor, is
    tried in the same way.  *name* is what messages and events call the machine;
    default: the path.  Every socket opened is closed in every case, and so is one that
    was given.  Leaving the block leaves QEMU running.

    Raises `MonitorAbsent` when nothing listens there, `MonitorBusy` when another
    client holds the monitor, `MonitorSilent` when QEMU is wedged, `MonitorLost` and
    `MonitorGarbled` as `open_session` does.
    """
    given: list[StrPath | socket.socket] = [path_or_socket]
    if second is not None:
        given.append(second)
    check_trio()
    async with AsyncExitStack() as stack:
        yield await _first_to_greet(stack, given, name, greeting_timeout, observer)


async def _first_to_greet(
    stack: AsyncExitStack,
    places: Sequence[StrPath | socket.socket],
    name: str | None,
    patience: float,
    observer: Observer | None,
) -> Session:
    silent: MonitorSilent | None = None
    for place in places:
        try:
            if isinstance(place, socket.socket):
                return await _enter(stack, place, name or "monitor", patience, observer)
            label = name or os.fspath(place)
            sock = await _dial(os.fspath(place), label, patience)
            return await _enter(stack, sock, label, patience, observer)
        except MonitorSilent as error:
            # The first monitor's trouble is the one to report: the second was a way round.
            silent = silent or error
        except MonitorAbsent:
            if silent is None:
                raise
    assert silent is not None
    raise silent


async def _enter(
    stack: AsyncExitStack,
    sock: socket.socket,
    label: str,
    patience: float,
    observer: Observer | None,
) -> Session:
    stack.callback(sock.close)
    # The witness keeps our connection in the kernel's table until it has been judged.
    witness = os.dup(sock.fileno())
    try:
        return await stack.enter_async_context(
            open_session(sock, name=label, greeting_timeout=patience, observer=observer)
        )
    except MonitorSilent as error:
        with socket.socket(fileno=os.dup(witness)) as ours:
            address = ours.getpeername()
            raise await _why_silent(label, patience, address, ours_is_open=True) from error
    finally:
        os.close(witness)


async def _dial(path: str, label: str, patience: float) -> socket.socket:
    deadline = trio.current_time() + patience
    while (sock := _connected(path)) is None:
        if trio.current_time() >= deadline:
            raise await _why_silent(label, patience, path, ours_is_open=False)
        # The queue of connections is full, perhaps of dead ones that QEMU is about to take
        # and drop.  Nothing tells a socket that does not block when there is room.
        await trio.sleep(_RETRY)
    return sock


def _connected(path: str) -> socket.socket | None:
    """A connection to *path*; None while the queue of connections there is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BlockingIOError:
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise _absent(path, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _absent(path: str, error: OSError) -> MonitorAbsent:
    # To the kernel a socket that nobody listens at and a plain file are the same.
    file = Path(path)
    if error.errno == errno.ECONNREFUSED and file.exists() and not file.is_socket():
        return MonitorAbsent(path, "it is no socket", "name the one that QEMU was given (-qmp)")
    cure = _ABSENT_CURES.get(error.errno or 0, "")
    return MonitorAbsent(path, error.strerror or str(error), cure)


_ABSENT_CURES = {
    errno.ENOENT: "check the path; QEMU removes it when it ends",
    errno.ECONNREFUSED: "the QEMU that made this socket has ended; start one",
    errno.EACCES: "run as the user that QEMU runs as, or as root",
    errno.EPROTOTYPE: "a QMP monitor is a stream socket; this one is of another type",
}


async def _why_silent(
    label: str, waited: float, address: object, *, ours_is_open: bool
) -> MonitorSilent:
    """Held by somebody else, or stuck?  The kernel knows whether QEMU has taken us in."""
    if isinstance(address, str) and address:
        table = await trio.Path("/proc/net/unix").read_text(errors="surrogateescape")
        if held(table, address, ours_is_open=ours_is_open):
            return MonitorBusy(label, waited, BUSY_CURE)
    return MonitorSilent(label, waited, SILENT_CURE)


def held(table: str, address: str, *, ours_is_open: bool) -> bool:
    """Whether, by */proc/net/unix*, somebody else has the only place of a listener.

    A stuck QEMU accepts nobody, or us and then says nothing.  Held means that one
    connection is accepted while ours, if it is open, still queues.
    """
    states = [
        columns[5]
        for columns in (line.split(maxsplit=7) for line in table.splitlines())
        if len(columns) == 8 and columns[7] == address
    ]
    return ACCEPTED in states and (QUEUED in states or not ours_is_open)
