"""A process that outlives us: started to be kept, or found again and adopted.

Until `keep()` it dies with us like every other child.  So whoever starts one writes its
identity down first, and a SIGKILL of ours leaves nothing, or a process that is on record.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import trio

from qmpkit._trio import service_nursery
from qmpkit.process.cgroup import Group
from qmpkit.process.child import KILL_GRACE, ChildLike
from qmpkit.process.errors import ProcessStuck, ProcessVanished
from qmpkit.process.identity import Identity, look_for
from qmpkit.process.launch import Launch
from qmpkit.process.logs import Tail
from qmpkit.process.spawner import Process, Spawner, reaped, shared_spawner
from qmpkit.process.status import ExitStatus

__all__ = ["Adopted", "KeptChild", "KeptLike", "adopted", "kept_child", "open_log", "trim_log"]

STDERR_LIMIT = 1 << 20
"""Bytes of a kept process's stderr that `trim_log` leaves; twice as many with the part before."""

_TAIL = 16384


class KeptLike(ChildLike, Protocol):
    """What the machine layer needs of a process that is kept."""

    @property
    def identity(self) -> Identity:
        """Which process it is, for finding it again."""

    @property
    def kept(self) -> bool:
        """True once it outlives us."""

    async def keep(self) -> bool:
        """Let it outlive us from now on; False when it has ended already."""


class _Watched:
    """What a kept process and an adopted one have in common: its end, its last words."""

    def __init__(self, identity: Identity, stderr: Path, begin: int = 0) -> None:
        self.identity = identity
        self._stderr = stderr
        self._begin = begin  # what stood in the file before is another's
        self._status: ExitStatus | None = None
        self._ended = trio.Event()
        self._tail = ""

    @property
    def pid(self) -> int:
        """The process number; only for people to read, signals go through the pidfd."""
        return self.identity.pid

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; None while it lives."""
        return self._status

    @property
    def stderr_tail(self) -> str:
        """The last lines of stderr, read from its file when the process has ended."""
        return self._tail

    async def wait(self) -> ExitStatus:
        """Wait for the end, as often and from as many tasks as you like; cancellable."""
        await self._ended.wait()
        assert self._status is not None
        return self._status

    async def _finish(self, status: ExitStatus) -> None:
        self._tail = await trio.to_thread.run_sync(tail_of, self._stderr, self._begin)
        self._status = status
        self._ended.set()


class KeptChild(_Watched):
    """A process that we started and that is to outlive us; made by `kept_child()`."""

    def __init__(
        self, process: Process, identity: Identity, stderr: Path, name: str, begin: int
    ) -> None:
        super().__init__(identity, stderr, begin)
        self.name = name
        self.kept = False
        self._process = process
        self._guarding = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<KeptChild {self.name} pid={self.pid} {self._status or 'running'}>"

    async def keep(self) -> bool:
        """Let it outlive us from now on; False when it has ended already.

        A cancellation strikes before or after, never in between.  `SpawnerLost` when
        the spawner was killed: then the process is being killed too.
        """
        self.kept = await self._process.keep()
        if self.kept:
            self._guarding.cancel()
        return self.kept

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM); nothing happens if it has ended."""
        self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process (SIGKILL); nothing happens if it has ended."""
        self._process.signal(signal.SIGKILL)

    async def _watch(self) -> None:
        await self._process.ended()
        await self._finish(await self._process.reap())

    async def _guard(self, spawner: Spawner) -> None:
        """Kill it when the spawner, which would, is gone; until it is kept."""
        with self._guarding:
            await spawner.wait_lost()
            if not self.kept:  # in the very moment
                self._process.kill_group()
                self.kill()

    async def _end(self) -> None:
        if self.kept or self._status is not None:
            return
        self.kill()
        with trio.move_on_after(KILL_GRACE, shield=True):
            await self._ended.wait()
        if self._status is None:
            raise ProcessStuck(self.name, self.pid, KILL_GRACE)


class Adopted(_Watched):
    """A process of an earlier program of ours; made by `adopted()`.

    It is nobody's child here, so how it ended stays unknown.
    """

    kept = True

    def __init__(self, identity: Identity, pidfd: int, stderr: Path) -> None:
        super().__init__(identity, stderr)
        self._pidfd = pidfd
        self._owner = os.getpid()

    def __repr__(self) -> str:
        return f"<Adopted pid={self.pid} {self._status or 'running'}>"

    async def keep(self) -> bool:
        """It is kept already; False when it has ended."""
        await trio.lowlevel.checkpoint()
        return self._status is None

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM); nothing happens if it has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and its group (SIGKILL); nothing happens if it has ended."""
        if self._signal(0):
            # Its pidfd has just said that it lives, so the group is still its own.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> bool:
        if self._status is not None or os.getpid() != self._owner:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    async def _watch(self) -> None:
        await trio.lowlevel.wait_readable(self._pidfd)
        # One that a machine has migrated to was started by this very program.
        await self._finish(await reaped(self.pid))


@asynccontextmanager
async def kept_child(
    argv: Sequence[str],
    *,
    stderr: Path,
    log: int,
    fds: Mapping[int, int] | None = None,
    env: Mapping[str, str] | None = None,
    group: Group | None = None,
    name: str = "",
) -> AsyncIterator[KeptChild]:
    """Start *argv*; leaving the block kills it, unless `keep()` was called.

    *fds*, *env* and *group* are as for `child`.  What it prints goes to *log*, a descriptor of
    the file *stderr* from `open_log`, which stays yours; its last words are read there.

    Raises `BinaryMissing`, `SpawnFailed`, `SpawnerLost`, and `ProcessStuck` when it
    survives SIGKILL for 10 s.
    Cancellation: no process is left but a kept one.
    """
    async with AsyncExitStack() as stack:
        spawner = await stack.enter_async_context(shared_spawner())
        fds = {**(fds or {}), 1: log, 2: log}
        begin = os.fstat(log).st_size
        process = await spawner.spawn(Launch(argv, fds, env, group=group))
        stack.callback(process.close)
        identity = Identity.of(process.pid)
        assert identity is not None, "nobody but us reaps it"
        started = KeptChild(process, identity, stderr, name or argv[0], begin)
        services = await stack.enter_async_context(service_nursery())
        stack.push_async_callback(started._end)
        services.start_soon(started._watch)
        services.start_soon(started._guard, spawner)
        yield started


@asynccontextmanager
async def adopted(identity: Identity, *, stderr: Path) -> AsyncIterator[Adopted]:
    """Watch the process that *identity* means; leaving the block leaves it as it is.

    Raises `ProcessVanished`, which says what has become of it, when it is not alive.
    """
    standing, pidfd = look_for(identity)
    if pidfd is None:
        raise ProcessVanished(identity.pid, standing)
    try:
        async with service_nursery() as services:
            found = Adopted(identity, pidfd, stderr)
            services.start_soon(found._watch)
            yield found
    finally:
        os.close(pidfd)


@contextmanager
def open_log(path: Path) -> Iterator[int]:
    """Open a log for appending, made (0600) when it is missing, within the block.  Blocking."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    trim_log(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def trim_log(path: Path, limit: int = STDERR_LIMIT) -> None:
    """Move what is in *path* to `<path>.1`, its last *limit* bytes, when it is more than that.

    The writer has it open for appending and goes on at the new beginning.  A line that
    it writes in this very moment may be lost.  Blocking; an unwritable file stays as it is.
    """
    with suppress(OSError):
        if path.stat().st_size <= limit:
            return
        with path.open("r+b") as file:
            file.seek(-limit, os.SEEK_END)
            path.with_name(path.name + ".1").write_bytes(file.read(limit))
            file.truncate(0)


def tail_of(path: Path, begin: int = 0) -> str:
    """The last lines of a log, from *begin* on; empty when it cannot be read.  Blocking."""
    tail = Tail()
    with suppress(OSError), path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        # One that is shorter than it was has been trimmed: all of it is newer.
        file.seek(max(begin if begin <= end else 0, end - _TAIL))
        tail.feed(file.read(_TAIL))
    return str(tail)
