"""One child process: started through the spawner, its stderr kept, never left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import attrs
import trio

from qmpkit._trio import service_nursery
from qmpkit.process.cgroup import Group
from qmpkit.process.errors import ProcessStuck
from qmpkit.process.launch import Launch
from qmpkit.process.limits import Limits
from qmpkit.process.logs import BoundedLog, Tail
from qmpkit.process.spawner import Process, Spawner, shared_spawner
from qmpkit.process.status import ExitStatus

__all__ = ["Child", "ChildLike", "child"]

KILL_GRACE = 10.0
"""Seconds a process may take to vanish after SIGKILL (gigabytes of memory to free)."""

DRAIN_GRACE = 1.0
"""Seconds to read on in stderr once the process is dead; more only if somebody inherited it."""


class ChildLike(Protocol):
    """What the machine layer needs of a process; `Child` and the test fake have it."""

    @property
    def pid(self) -> int:
        """The process number; only for people to read."""

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; None while it lives."""

    @property
    def stderr_tail(self) -> str:
        """The last lines of its stderr."""

    async def wait(self) -> ExitStatus:
        """Wait for its end."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


class Child:
    """A running process; made by `child()`."""

    def __init__(self, process: Process, name: str) -> None:
        self.name = name
        self._process = process
        self._status: ExitStatus | None = None
        self._ended = trio.Event()
        self._tail = Tail()
        self._drained = trio.Event()

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self.pid} {self._status or 'running'}>"

    @property
    def pid(self) -> int:
        """The process number; only for people to read, signals go through the pidfd."""
        return self._process.pid

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, once its stderr has been read to the end; None before."""
        return self._status

    @property
    def stderr_tail(self) -> str:
        """The last lines of stderr; complete once `wait()` has returned."""
        return str(self._tail)

    async def wait(self) -> ExitStatus:
        """Wait for the end, as often and from as many tasks as you like; cancellable.

        A zombie has ended.  When this returns, `stderr_tail` is complete.  The
        status is unknown if the spawner was killed.
        """
        await self._ended.wait()
        assert self._status is not None
        return self._status

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM); nothing happens if it has ended."""
        self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process (SIGKILL); nothing happens if it has ended.

        What else lives in its process group is killed when it is gone.
        """
        self._process.signal(signal.SIGKILL)

    async def _watch(self) -> None:
        await self._process.ended()
        status = await self._process.reap()
        with trio.move_on_after(DRAIN_GRACE):
            await self._drained.wait()
        self._status = status
        self._ended.set()

    async def _guard(self, spawner: Spawner) -> None:
        """Kill the process when nothing would any more if we were killed."""
        await spawner.wait_lost()
        self._process.kill_group()
        self.kill()

    async def _drain(self, pipe: trio.lowlevel.FdStream | None, log: BoundedLog | None) -> None:
        if pipe is not None:
            async with pipe:
                async for chunk in pipe:
                    self._tail.feed(chunk)
                    if log is not None:
                        log.write(chunk)
        self._drained.set()

    async def _end(self) -> None:
        if self._status is not None:
            return
        self.kill()
        with trio.move_on_after(KILL_GRACE, shield=True):
            await self._ended.wait()
        if self._status is None:
            raise ProcessStuck(self.name, self.pid, KILL_GRACE)


@asynccontextmanager
async def child(
    argv: Sequence[str],
    *,
    fds: Mapping[int, int] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stderr_log: Path | None = None,
    limits: Limits | None = None,
    group: Group | None = None,
    name: str = "",
) -> AsyncIterator[Child]:
    """Run *argv* for the length of the block; on leaving it is killed if it still lives.

    The process has a session of its own, default signal handling and exactly
    the descriptors of *fds* (child's number → ours, which we keep and may close
    once the block has begun).  What it does not name is /dev/null for 0, and
    for 1 and 2 a pipe of ours: its last lines are `stderr_tail`, and all of it
    goes to the bounded log *stderr_log*.  `env` None means our environment;
    a program without a slash is sought on that environment's PATH.  Of *limits*
    those that the kernel watches hold; `time` is the caller's to bound.
    *group*: the control group that it is born in; None is ours.

    The process dies with us, also when we are killed by SIGKILL.
    Raises `BinaryMissing`, `SpawnFailed`, `SpawnerLost`; `ProcessStuck` when it
    survives SIGKILL for 10 s.
    Cancellation: no process is left.
    """
    async with AsyncExitStack() as stack:
        spawner = await stack.enter_async_context(shared_spawner())
        launch = Launch(argv, dict(fds or {}), env, cwd, limits, group)
        process, pipe = await _start(spawner, launch)
        stack.callback(process.close)
        started = Child(process, name or argv[0])
        services = await stack.enter_async_context(service_nursery())
        stack.push_async_callback(started._end)
        log = None if stderr_log is None else BoundedLog(stderr_log)
        if log is not None:
            services.start_soon(log.run)
        services.start_soon(started._watch)
        services.start_soon(started._guard, spawner)
        services.start_soon(started._drain, pipe, log)
        yield started


async def _start(spawner: Spawner, launch: Launch) -> tuple[Process, trio.lowlevel.FdStream | None]:
    """Start the process; with the reading end of its stderr, unless that goes elsewhere."""
    if 2 in launch.fds:
        return await spawner.spawn(launch), None
    reader, writer = os.pipe()
    try:
        fds = {1: writer, **launch.fds, 2: writer}
        process = await spawner.spawn(attrs.evolve(launch, fds=fds))
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return process, trio.lowlevel.FdStream(reader)
