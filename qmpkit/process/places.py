"""Where a supervisor's kept machines are: what must last, and what a reboot may take.

    state directory                          runtime directory
        lock            who supervises           .state   a link to the state directory
        machines/journal   what is declared      <machine>/qmp, tools, serial0, agent
        logs/<machine>/stderr.log, …
        saved/<machine>/manifest.json, memory

The state directory is `$QMPKIT_STATE_DIR/NAME`, else `/var/lib/qmpkit/NAME` for root,
else `$XDG_STATE_HOME/qmpkit/NAME` (`~/.local/state`).  The runtime directory is `NAME` in
the runtime root of `rundir`; where the paths of sockets would be longer than the kernel
takes, a short one with a hash for a name, in that root or in `/run/qmpkit` or `/tmp/qmpkit-<uid>`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from qmpkit.errors import HostLacks, SupervisorRunning
from qmpkit.process.roots import HASH, JOURNAL, OWNER, hash_of, root_by_rule, state_root
from qmpkit.process.rundir import (
    SOCKET_NAME_LIMIT,
    SOCKET_PATH_LIMIT,
    owner_of,
    verify,
)
from qmpkit.process.sockets import listened_at

__all__ = ["Places", "claimed_places", "discard", "fresh", "second_of", "state_root", "who_is_at"]

_DYING = 1.0  # seconds that a process may take to vanish whose program was killed

# "/k.<hash>/m.<hash>/socket" is the shortest form.
_SHORT = 2 * (1 + 2 + HASH) + 1 + SOCKET_NAME_LIMIT


@attrs.frozen
class Places:
    """The directories of one supervisor; all of them are there, for its user alone."""

    state: Path
    runtime: Path

    @property
    def journal(self) -> Path:
        """The journal's file, whose directory is there."""
        return self.state / JOURNAL

    def logs(self, machine: str) -> Path:
        """The directory of a machine's logs; not made yet."""
        return self.state / "logs" / machine

    @property
    def saved(self) -> Path:
        """Where machines are that were saved, each in a folder of its name; not made yet."""
        return self.state / "saved"

    def sockets(self, machine: str) -> Path:
        """The directory of a machine's sockets, whose paths fit; not made yet."""
        plain = self.runtime / machine
        if len(os.fsencode(plain)) + 1 + SOCKET_NAME_LIMIT <= SOCKET_PATH_LIMIT:
            return plain
        return self.runtime / _short(machine)


def _short(machine: str) -> str:
    return f"m.{hash_of(machine)}"


def second_of(machine: str) -> str:
    """What a machine's second process is called, where both have something of their own.

    One that moves has two, and is either of them afterwards; it is started as the first.
    """
    return f"{machine}~"


def who_is_at(sockets: Path, machine: str) -> str:
    """Which of a machine's two processes has this directory of sockets."""
    second = second_of(machine)
    return second if sockets.name in (second, _short(second)) else machine


@contextmanager
def claimed_places(name: str) -> Iterator[Places]:
    """The directories of the supervisor *name*, made when missing, and ours within the block.

    The lock is in the state directory: that is what two supervisors must not write, and
    the runtime directory of a login session may be another than that of a service.  The
    kernel drops it when we die.  Blocking: a few system calls.

    Raises `SupervisorRunning` with the holder's process when another has it, `HostLacks`
    when a directory cannot be made or is not ours alone.
    """
    state = _made(state_root() / name)
    lock = _lock(state, name)
    try:
        places = Places(state, _runtime(state, name))
        _made(places.journal.parent)
        yield places
        _leave(places.runtime)
    finally:
        os.close(lock)


def _made(directory: Path) -> Path:
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot make the state directory {directory}: {error.strerror}"
        raise HostLacks(what, "set QMPKIT_STATE_DIR to a directory of your own") from error
    verify(directory, "state directory", "QMPKIT_STATE_DIR")
    return directory


def _lock(state: Path, name: str) -> int:
    """Hold the supervisor's lock, with our process number in it for whoever comes second."""
    path = state / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        what = f"cannot open the lock {path}: {error.strerror}"
        raise HostLacks(what, "make the file system writable, or free some space") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sign(fd)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).strip()
        os.close(fd)
        raise SupervisorRunning(name, str(state), int(holder) if holder.isdigit() else None) from (
            None
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sign(fd: int) -> None:
    with suppress(OSError):  # a full disk: the lock itself needs no space
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)


def _runtime(state: Path, name: str) -> Path:
    root = root_by_rule()
    plain = root / name
    # One that looks like a block's machine would be swept away with those.
    if _fits(plain, 1 + 2 + HASH + 1 + SOCKET_NAME_LIMIT) and owner_of(plain) is None:
        verify(root, "runtime directory", "QMPKIT_RUNTIME_DIR")
        if _taken(plain, state):
            return plain
    if not _fits(root, _SHORT):
        root = Path("/run/qmpkit") if os.geteuid() == 0 else Path(f"/tmp/qmpkit-{os.geteuid()}")
        verify(root, "runtime directory", "QMPKIT_RUNTIME_DIR")
    hashed = root / f"k.{hash_of(str(state))}"
    _taken(hashed, state)
    return hashed


def _taken(directory: Path, state: Path) -> bool:
    """Make a runtime directory that of *state*; False when it is another state directory's."""
    verify(directory, "runtime directory", "QMPKIT_RUNTIME_DIR")
    link = directory / OWNER
    try:
        link.symlink_to(state)
    except FileExistsError:
        return link.readlink() == state
    except OSError as error:
        what = f"cannot write in the runtime directory {directory}: {error.strerror}"
        raise HostLacks(what, "make the file system writable, or free some space") from error
    return True


def _leave(directory: Path) -> None:
    """Remove a runtime directory in which no machine has sockets."""
    with suppress(OSError):
        if [entry.name for entry in directory.iterdir()] == [OWNER]:
            (directory / OWNER).unlink()
            directory.rmdir()


def _fits(directory: Path, rest: int) -> bool:
    return len(os.fsencode(directory)) + rest <= SOCKET_PATH_LIMIT


def fresh(directory: Path) -> None:
    """Make *directory* (0700), without what may be left in it of an earlier run.  Blocking.

    Raises HostLacks when it cannot be made, or somebody listens there: whoever that is would
    live on where nobody finds it any more.
    """
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            return
        _refuse_a_listener(directory)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
    except OSError as error:
        what = f"cannot make the directory for sockets {directory}: {error.strerror}"
        raise HostLacks(what, "make the file system writable, or free some space") from error


def _refuse_a_listener(directory: Path) -> None:
    for path in (directory / "qmp", directory / "tools"):
        if listened_at(path, _DYING):
            what = f"a process that is on no record listens at {path}"
            raise HostLacks(what, f"see what it is, and end it (`qmpkit qmp {path} quit`)")


def discard(directory: Path) -> None:
    """Remove *directory* and what is in it.  Blocking."""
    shutil.rmtree(directory, ignore_errors=True)
