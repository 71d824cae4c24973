"""`qmpkit serve`: the daemon in the foreground, or detached from the terminal."""

from __future__ import annotations

import fcntl
import gc
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qmpkit.cli.daemon import NoDaemon, find_daemon
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.linger import session_problem
from qmpkit.cli.talk import talk
from qmpkit.errors import HostLacks, QmpkitError
from qmpkit.process.logs import Tail
from qmpkit.process.roots import state_root

__all__ = ["detach", "end_daemon", "own_process", "serve_farm", "starting"]

_PATIENCE = 60.0
_M_ARENA_MAX = -8  # <malloc.h>
_SELDOM = (10_000, 20, 10)  # new objects, collections of those, and of the ones that outlived it
_OWN_PLACES = ("QMPKIT_STATE_DIR", "QMPKIT_RUNTIME_DIR")


class DaemonFailed(QmpkitError):
    """A daemon that was to run in the background has ended instead."""


async def serve_farm(
    farm: str, group: str | None, ready_fd: int | None, log_file: Path | None
) -> int:
    """Serve until a signal or a client ends it; returns the exit status.

    *log_file*: where stderr leads already, to be kept in bounds.
    """
    try:
        from qmpkit.server.daemon import run_daemon
        from qmpkit.server.handed import handed_over
    except ImportError as error:
        what = f"the daemon needs {error.name}, which is not installed"
        raise HostLacks(what, "pip install 'qmpkit[farm]'") from error
    from qmpkit.cli.daemon_log import logged

    own_process()

    def ready(path: Path) -> None:
        talk.say(f"farm {farm!r}: listening at {path}")
        _notify(b"READY=1")
        if ready_fd is not None:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)

    async with logged(log_file):
        try:
            await run_daemon(farm, group=group, handed=handed_over(), ready=ready)
        finally:
            _notify(b"STOPPING=1")
    return Exit.OK


def own_process() -> None:
    """What may be set in a process that is ours alone, for the sake of many machines.

    A program that keeps hundreds of them in a supervisor of its own may do the same.
    """
    import ctypes  # only a daemon needs it

    # glibc has memory apart for each thread: with many machines that is megabytes.
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    # What is imported stays: to look at it holds up the loop for 25 ms, at each full collection.
    gc.collect()
    gc.freeze()
    # Next to nothing of ours is in cycles, and a machine is thousands of objects: by Python's
    # own numbers a tenth of the time of a start went into looking for some, 20 ms at a stretch.
    gc.set_threshold(*_SELDOM)


def _notify(message: bytes) -> None:
    """Tell systemd, when it is systemd that runs us."""
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message, address)


@contextmanager
def starting(farm: str) -> Iterator[None]:
    """For who is about to start a daemon: another such command is waited for, and found then."""
    lock = _open_log(state_root() / farm / "starting")
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def detach(farm: str, group: str | None = None) -> None:
    """Start the daemon in the background, and return when it answers.

    Its log is `<state>/daemon.log`.  Raises DaemonFailed with the last lines of it.
    """
    folder = state_root() / farm
    if problem := session_problem():
        talk.warn(problem)
    log = _open_log(folder / "daemon.log")
    begin = os.fstat(log).st_size
    reads, writes = os.pipe()
    words = ["serve", "--farm", farm, "--ready-fd", str(writes)]
    words += ["--log-file", str(folder / "daemon.log")]
    words += [] if group is None else ["--group", group]
    try:
        subprocess.Popen(
            [sys.executable, "-m", "qmpkit.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writes],
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
    finally:
        os.close(writes)
        os.close(log)
    try:
        _wait_ready(reads, folder / "daemon.log", begin)
    finally:
        os.close(reads)


def end_daemon(farm: str) -> None:
    """End the daemon of *farm*, if one runs, and return when it has; its machines live on."""
    try:
        daemon = find_daemon(farm)
        pid = daemon.get()["pid"]
        process = os.pidfd_open(pid)  # before it is asked to end: the number is still its own
    except (NoDaemon, ProcessLookupError):
        return
    try:
        daemon.post("shutdown")
        if not select.select([process], [], [], _PATIENCE)[0]:
            raise DaemonFailed(f"the daemon of farm {farm!r} (process {pid}) does not end")
    finally:
        os.close(process)


def _environment() -> dict[str, str]:
    """Ours, with places that mean the same in another directory."""
    places = {name: os.path.realpath(own) for name in _OWN_PLACES if (own := os.environ.get(name))}
    return {**os.environ, **places}


def _open_log(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refusal(f"cannot write {path}: {error.strerror}") from error


def _wait_ready(reads: int, log: Path, begin: int) -> None:
    until = time.monotonic() + _PATIENCE
    said = b""
    while not said.endswith(b"ready\n"):
        left = until - time.monotonic()
        if left <= 0 or not select.select([reads], [], [], left)[0]:
            raise DaemonFailed(f"the daemon is not ready after {_PATIENCE:g} s: see {log}")
        if not (chunk := os.read(reads, 64)):
            raise DaemonFailed(f"the daemon did not start:\n{_last_words(log, begin)}")
        said += chunk


def _last_words(log: Path, begin: int) -> str:
    """Its own: what stands before *begin* are those of the daemon before it."""
    tail = Tail(lines=8)
    with log.open("rb") as file:
        file.seek(begin if begin <= log.stat().st_size else 0)
        tail.feed(file.read())
    return str(tail).rstrip()
