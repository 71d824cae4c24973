"""The client's side of the spawner: one small process per trio run that starts our children.

See `_spawner_main` for what it promises.  There is no service task: whoever
wants something sends one request and waits for its one reply, under a lock.
"""

from __future__ import annotations

import array
import errno
import fcntl
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import cache
from importlib.machinery import SourceFileLoader
from typing import Any

import trio

from qmpkit._trio import check_trio
from qmpkit.errors import HostLacks
from qmpkit.process import _spawner_main
from qmpkit.process.errors import SpawnerLost, SpawnFailed
from qmpkit.process.launch import Launch, launch_failure
from qmpkit.process.status import ExitStatus

__all__ = ["Process", "Spawner", "reaped", "shared_spawner"]

BOOT = "import marshal, sys; exec(marshal.load(open(int(sys.argv[3]), 'rb')))"
"""What the spawner's Python is told to run: the code that comes as a third descriptor."""

REPLY_GRACE = 10.0
"""Seconds a cancelled request still waits for its reply, which takes about a millisecond."""

CLOSE_GRACE = 5.0
"""Seconds the spawner has to end before it is killed."""

_MORE = "call raise_nofile() first"


class Process:
    """One started process: its number and the pidfd that cannot mean another one."""

    def __init__(self, spawner: Spawner, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._spawner = spawner
        self._owner = os.getpid()

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when the process has ended, or in a fork of ours."""
        if self._pidfd >= 0 and os.getpid() == self._owner:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """SIGKILL to the process and all of its group, when no spawner is left to do it."""
        if self._pidfd >= 0 and os.getpid() == self._owner and not _readable(self._pidfd):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def ended(self) -> None:
        """Wait until the process is dead, reaped or not; for one task at a time."""
        await trio.lowlevel.wait_readable(self._pidfd)

    async def reap(self) -> ExitStatus:
        """How the process, which has ended, ended; kills what remains of its group."""
        return await self._spawner.reap(self.pid)

    async def keep(self) -> bool:
        """Let the process outlive us from now on; see `Spawner.keep`."""
        return await self._spawner.keep(self.pid)

    def close(self) -> None:
        """Give up the pidfd."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


class Spawner:
    """A running spawner; got from `shared_spawner()`."""

    def __init__(self, popen: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.users = 0
        self.pid = popen.pid
        self._popen = popen
        self._control = control
        self._pidfd = os.pidfd_open(popen.pid)
        self._lock = trio.Lock()
        self._watched = False
        self._others = trio.lowlevel.ParkingLot()
        _spawners.add(self)

    @property
    def lost(self) -> bool:
        """True when nothing more can be started here."""
        return self._control.fileno() < 0 or _readable(self._pidfd)

    async def spawn(self, launch: Launch) -> Process:
        """Start a process in a session of its own, with default signal handling.

        Raises `BinaryMissing`, `SpawnFailed` or `SpawnerLost`.  When this is
        cancelled, no process is left.
        """
        with ExitStack() as ours:
            try:
                fds = [*_opened(launch, ours), *launch.fds.values()]
            except OSError as error:  # our own limit of descriptors is reached
                raise SpawnFailed(launch.argv, "fds", error.errno or 0, "", _MORE) from error
            async with self._lock:
                self._send_launch(launch, fds)
                return await self._spawned(launch)

    def _send_launch(self, launch: Launch, fds: Sequence[int]) -> None:
        try:
            self._send(("spawn",), fds)
        except OSError as error:  # one of the descriptors is none, as a rule
            raise SpawnFailed(launch.argv, "fds", error.errno or 0, "") from error

    async def _spawned(self, launch: Launch) -> Process:
        try:
            await self._answered()
        except BaseException:  # Cancelled, or KeyboardInterrupt: nobody will own the process
            with trio.move_on_after(REPLY_GRACE, shield=True) as scope:
                await self._answered()
                await self._discard(launch)
            if scope.cancelled_caught:
                # It kills what it is starting when it sees the end of its socket.
                self._give_up()
            raise
        reply, fds = self._receive()
        if reply[0] == "failed":
            raise launch_failure(launch, *reply[1:])
        if not fds:  # our own limit of descriptors is reached
            await self._kill(reply[1])
            raise SpawnFailed(launch.argv, "pidfd", errno.EMFILE, "", _MORE)
        return Process(self, reply[1], fds[0])

    async def _discard(self, launch: Launch) -> None:
        """Kill what a cancelled request has started."""
        with suppress(SpawnerLost):
            reply, fds = self._receive()
            for fd in fds:
                os.close(fd)
            if reply[0] == "spawned":
                await self._exchange(("kill", reply[1]))

    async def _kill(self, pid: int) -> None:
        with trio.move_on_after(REPLY_GRACE, shield=True) as scope:
            await self._exchange(("kill", pid))
        if scope.cancelled_caught:
            self._give_up()

    async def keep(self, pid: int) -> bool:
        """Let the child *pid* outlive the spawner and us; False when it has ended already.

        Not to be called before it is on record somewhere, for nobody kills it any more.
        A cancellation waits for the answer (`REPLY_GRACE` at most), so the caller knows
        which it is.  Raises `SpawnerLost`: then the child is being killed.
        """
        async with self._lock:
            with trio.move_on_after(REPLY_GRACE, shield=True):
                return bool(await self._exchange(("keep", pid)))
            self._give_up()
            raise SpawnerLost

    async def reap(self, pid: int) -> ExitStatus:
        """How the ended child *pid* ended; unknown when the spawner is gone."""
        async with self._lock:
            with trio.move_on_after(REPLY_GRACE, shield=True):
                try:
                    return ExitStatus.from_wait(await self._exchange(("reap", pid)))
                except SpawnerLost:
                    return ExitStatus()
            self._give_up()
            return ExitStatus()

    async def _exchange(self, request: tuple[Any, ...]) -> Any:
        self._send(request, [])
        await self._answered()
        return self._receive()[0][1]

    def _send(self, request: tuple[Any, ...], fds: Sequence[int]) -> None:
        if self._control.fileno() < 0:
            raise SpawnerLost
        # Never blocks: only one request is under way, and it is small.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._control.sendmsg([marshal.dumps(request)], rights)
        except (BrokenPipeError, ConnectionResetError) as error:
            self._give_up()
            raise SpawnerLost from error

    async def _answered(self) -> None:
        await trio.lowlevel.wait_readable(self._control)

    def _receive(self) -> tuple[tuple[Any, ...], list[int]]:
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                65536, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            data, ancillary = b"", []
        if not data:
            self._give_up()
            raise SpawnerLost
        fds = [fd for _, _, sent in ancillary for fd in memoryview(sent).cast("i")]
        return marshal.loads(data), fds

    async def wait_lost(self) -> None:
        """Wait until the spawner has ended."""
        # trio allows one waiter for a descriptor: the others wait to take its place.
        if self._watched:
            await self._others.park()
        self._watched = True
        try:
            await trio.lowlevel.wait_readable(self._pidfd)
        finally:
            if self._others:
                self._others.unpark()
            else:
                self._watched = False

    def _give_up(self) -> None:
        if self._control.fileno() >= 0:
            trio.lowlevel.notify_closing(self._control)
            self._control.close()

    async def close(self) -> None:
        """End the spawner, and with it every child it still has; bounded by `CLOSE_GRACE`."""
        self._give_up()
        try:
            with trio.move_on_after(CLOSE_GRACE, shield=True) as scope:
                await trio.lowlevel.wait_readable(self._pidfd)
            if scope.cancelled_caught:
                self._popen.kill()
                with trio.move_on_after(CLOSE_GRACE, shield=True):
                    await trio.lowlevel.wait_readable(self._pidfd)
        finally:
            self._reap()

    def _reap(self) -> None:
        os.close(self._pidfd)
        # It is dead, or, when a second Ctrl-C broke through the shields, in this moment dying.
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=1)

    def forget(self) -> None:
        """In a fork of our process: let go of the socket, whose closing kills the children."""
        self._control.close()


_spawners: weakref.WeakSet[Spawner] = weakref.WeakSet()
_current: trio.lowlevel.RunVar[Spawner | None] = trio.lowlevel.RunVar("spawner", None)
_starting: trio.lowlevel.RunVar[trio.Lock] = trio.lowlevel.RunVar("spawner_starting")


def _forget_all() -> None:
    for spawner in _spawners:
        spawner.forget()


os.register_at_fork(after_in_child=_forget_all)


async def reaped(pid: int) -> ExitStatus:
    """How the ended process *pid* ended, if this trio run has started it; unknown otherwise."""
    spawner = _current.get()
    if spawner is None:
        await trio.lowlevel.checkpoint()
        return ExitStatus()
    return await spawner.reap(pid)


@asynccontextmanager
async def shared_spawner() -> AsyncIterator[Spawner]:
    """The spawner of this trio run: the first user starts it, the last one ends it.

    Hold it around a series of short programs, which would otherwise each start
    one (about 10 ms).  It copies from us when it starts what children inherit:
    umask, limits, niceness, cgroup and namespaces; changes made later do not
    reach them.  Raises `HostLacks` when it cannot be started.
    Cancellation: leaves no process.
    """
    check_trio()
    spawner = await _acquire()
    try:
        yield spawner
    finally:
        spawner.users -= 1
        if not spawner.users:
            if _current.get() is spawner:
                _current.set(None)
            await spawner.close()


async def _acquire() -> Spawner:
    """The current spawner, started if there is none that works; counted as used."""
    async with _start_lock():
        spawner = _current.get()
        if spawner is None or spawner.lost:
            # A limiter of its own: threads stuck in a slow disk must not hold up a start.
            spawner = await trio.to_thread.run_sync(_start, limiter=trio.CapacityLimiter(1))
            _current.set(spawner)
        spawner.users += 1
        return spawner


def _start_lock() -> trio.Lock:
    try:
        return _starting.get()
    except LookupError:
        lock = trio.Lock()
        _starting.set(lock)
        return lock


def _opened(launch: Launch, ours: ExitStack) -> tuple[int, int]:
    """What is to be done, and the directory in which we are; closed with *ours*."""
    body = os.memfd_create("qmpkit-spawn")
    ours.callback(os.close, body)
    os.write(body, launch.body())
    start = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ours.callback(os.close, start)
    return body, start


def _readable(fd: int) -> bool:
    """True when *fd*, a pidfd, says that its process has ended."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _start() -> Spawner:
    # In a frozen application the executable is the application itself.
    if not sys.executable or getattr(sys, "frozen", False):
        raise HostLacks(
            "cannot start the spawner: this Python does not know its own interpreter",
            "run the program with a Python interpreter that is installed",
        )
    try:
        with ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            stack.enter_context(ours)
            with theirs:
                popen = _popen(theirs)
            try:
                started = Spawner(popen, ours)
            except BaseException:
                ours.close()
                popen.wait()  # it ends at once: its client is gone
                raise
            stack.pop_all()
            return started
    except OSError as error:
        raise HostLacks(f"cannot start the spawner: {error}") from error


def _popen(control: socket.socket) -> subprocess.Popen[bytes]:
    with ExitStack() as stack:

        def passed(fd: int) -> int:
            # Above the standard three, should one of those be closed here.
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            stack.callback(os.close, copy)
            return copy

        us = os.pidfd_open(os.getpid())
        stack.callback(os.close, us)
        code = os.memfd_create("qmpkit-spawner")
        stack.callback(os.close, code)
        os.pwrite(code, _program(), 0)
        fds = [passed(control.fileno()), passed(us), passed(code)]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, *map(str, fds), "qmpkit-spawner"],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


@cache
def _program() -> bytes:
    """The spawner's code, compiled: compiling it once more would be a third of its start."""
    loader = SourceFileLoader(_spawner_main.__name__, _spawner_main.__file__)
    return marshal.dumps(loader.get_code(_spawner_main.__name__))
