"""The spawner: starts children, and kills all but the kept ones when its client is gone.

Run by `qmpkit.process.spawner` in an isolated Python (`-I -S`), with two file
descriptors: the control socket and a pidfd of the client.  It is a process of
its own because nothing inside the client can promise that children end with
it: a parent-death signal is bound to one thread and is cleared when the child
changes its user, and no signal handler survives SIGKILL.

One request at a time comes over the SOCK_SEQPACKET control socket, and each
gets one reply.  Both are `marshal` data, for both ends are the same interpreter.

=========================  ==================================================
request                    reply
=========================  ==================================================
("spawn",) + fds           ("spawned", pid) + pidfd
                           or ("failed", stage, errno, path)
("reap", pid)              ("ended", wait status), None if it has not ended
("kill", pid)              ("ended", wait status), once it has ended
("keep", pid)              ("kept", whether it lived); it outlives us from now on
=========================  ==================================================

The fds of a spawn are a memfd with the body (argv, env, candidates, cwd,
targets, limits, group), the directory to start from, and the descriptors for the targets.

Only small modules are imported: `socket` and `signal` would double the start, and
`contextlib`, `pathlib` and `typing` would add to it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import errno
import fcntl
import marshal
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_FDS = 253  # the kernel's SCM_MAX_FD

# For so many descriptors a child's table has room.  A process with threads waits some 13 ms when
# it outgrows it, as QEMU with its 65th: in the middle of its start, or of its guest's life.
ROOM_FDS = 1024

Limit = tuple[int, int, int]  # which, soft, hard
Group = tuple[bytes, bytes]  # the directory of a control group, and where those are mounted
Body = tuple[
    list[bytes], dict[bytes, bytes], list[bytes], bytes, list[int], list[Limit], "Group | None"
]


class Refused(Exception):
    """A child that could not be started: at which stage, why, and the path in question."""

    def __init__(self, stage: str, code: int | None, path: bytes = b"") -> None:
        self.reply = ("failed", stage, code or 0, path)
        super().__init__(self.reply)


class Stop(BaseException):
    """SIGTERM arrived."""


class Spawner:
    def __init__(self, control: int, owner: int) -> None:
        # Inherited on purpose by this process, and by nobody after it.
        os.set_inheritable(control, False)
        os.set_inheritable(owner, False)
        self._control = _socket.socket(fileno=control)
        self._owner = owner
        self._children: set[int] = set()
        self._kept: set[int] = set()

    def serve(self) -> None:
        """Answer until the client is gone; however this ends, children that are not kept die."""
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        # A fork of the client may hold the other end of the socket: its pidfd does not lie.
        poll.register(self._owner, select.POLLIN)
        try:
            while True:
                # SIGTERM strikes only here, never between a spawn and its bookkeeping.
                _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGTERM,))
                ready = [fd for fd, _ in poll.poll()]
                _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM,))
                if self._owner in ready or not self._answer():
                    return
        finally:
            for pid in self._children - self._kept:
                _kill_group(pid)

    def _answer(self) -> bool:
        """Serve one request; False when the client has closed its end."""
        space = _socket.CMSG_SPACE(4 * MAX_FDS)
        data, ancillary, flags, _ = self._control.recvmsg(4096, space, _socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        fds = [fd for _, _, sent in ancillary for fd in memoryview(sent).cast("i")]
        handed: list[int] = []
        try:
            reply, handed = self._obey(marshal.loads(data), fds, flags)
        except Refused as refused:
            reply = refused.reply
        except Exception:  # a defect, but no reason to kill all other children
            sys.excepthook(*sys.exc_info())
            reply = ("failed", "exec", errno.EINVAL, b"")
        finally:
            _close(fds)
        self._send(reply, handed)
        return True

    def _obey(
        self, request: tuple[Any, ...], fds: list[int], flags: int
    ) -> tuple[tuple[Any, ...], list[int]]:
        if request[0] == "spawn":
            if flags & _socket.MSG_CTRUNC:  # our limit of descriptors is reached
                raise Refused("fds", errno.EMFILE)
            pid, limits, home = self._spawn(fds)
            try:
                if home is not None:
                    _join(home)
                if limits:
                    _limit(pid, limits)
                return ("spawned", pid), [_pidfd(pid)]
            except Refused:
                # The client does not know it, so nobody would watch or stop it.
                _kill_group(pid)
                self._children.discard(pid)
                os.waitpid(pid, 0)
                raise
        if request[0] == "keep":
            return ("kept", self._keep(request[1])), []
        if request[0] == "kill" and request[1] in self._children:
            _kill_group(request[1])
            os.waitid(os.P_PID, request[1], os.WEXITED | os.WNOWAIT)
        return ("ended", self._reap(request[1])), []

    def _send(self, reply: tuple[Any, ...], fds: list[int]) -> None:
        numbers = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)]
        try:
            self._control.sendmsg([marshal.dumps(reply)], rights if fds else [])
        finally:
            _close(fds)

    def _spawn(self, fds: list[int]) -> tuple[int, list[Limit], bytes | None]:
        """A child; what to limit it by, and the control group that we have left for it."""
        body, start, *sources = fds
        told: Body = marshal.loads(os.pread(body, os.fstat(body).st_size, 0))
        argv, env, candidates, cwd, targets, limits, group = told
        _change_directory(start, cwd)
        moved = _out_of_the_way(sources, targets)
        home = None if group is None else _enter(*group)
        try:
            pid = _first(candidates, argv, env, [*zip(moved, _all(targets), strict=True)])
        except Refused:
            if home is not None:
                _join(home)
            raise
        finally:
            _close(moved)
            os.chdir("/")  # never pin somebody's mount
        self._children.add(pid)
        return pid, limits, home

    def _keep(self, pid: int) -> bool:
        if pid not in self._children:
            return False
        self._kept.add(pid)
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    def _reap(self, pid: int) -> int | None:
        """The wait status of a child that has ended, and the end of its process group."""
        if pid not in self._children:
            return None
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return None
        # While the leader is a zombie its number cannot be given to another process.
        _kill_group(pid)
        self._children.discard(pid)
        self._kept.discard(pid)
        return os.waitpid(pid, 0)[1]


def _change_directory(start: int, cwd: bytes) -> None:
    try:
        os.fchdir(start)
        if cwd:
            os.chdir(cwd)
    except OSError as error:
        raise Refused("cwd", error.errno, cwd) from None


def _enter(group: bytes, mount: bytes) -> bytes:
    """Go into a control group, which the next child is born in; gives the group to go back to.

    So it is limited before it has allocated anything.  A fork that moves itself would cost
    eight times as much as posix_spawn.
    """
    with open("/proc/self/cgroup", "rb") as file:  # noqa: PTH123
        places = [line.strip() for line in file if line.startswith(b"0::")]
    home = places[0][3:].lstrip(b"/") if places else b""
    _join(group)
    return mount + b"/" + home


def _join(group: bytes) -> None:
    try:
        procs = os.open(group + b"/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(procs, b"0\n")
        finally:
            os.close(procs)
    except OSError as error:
        raise Refused("cgroup", error.errno, group) from None


def _all(targets: list[int]) -> list[int]:
    """The child's descriptors: those asked for, and the standard three in any case."""
    return [*targets, *(fd for fd in (0, 1, 2) if fd not in targets)]


def _out_of_the_way(sources: list[int], targets: list[int]) -> list[int]:
    """Copies of *sources* (/dev/null for what is missing) above every target number.

    So no dup2 in the child can overwrite a descriptor that a later one still needs.
    """
    lowest = max((2, *targets)) + 1
    moved: list[int] = []
    try:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            wanted = [*sources, *[null] * (len(_all(targets)) - len(sources))]
            for fd in wanted:
                moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest))
        finally:
            os.close(null)
    except OSError as error:
        _close(moved)
        raise Refused("fds", error.errno) from None
    return moved


def _first(
    candidates: list[bytes],
    argv: list[bytes],
    env: dict[bytes, bytes],
    mapping: list[tuple[int, int]],
) -> int:
    """Start the first of *candidates* (argv[0] along PATH) that can be started."""
    code, failed = errno.ENOENT, candidates[0]
    for path in candidates:
        try:
            return _start(path, argv, env, mapping)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise Refused("exec", error.errno, path) from None
            if error.errno == errno.EACCES or os.path.exists(path):  # noqa: PTH110
                code, failed = error.errno, path
    raise Refused("exec", code, failed)


def _start(
    path: bytes, argv: list[bytes], env: dict[bytes, bytes], mapping: list[tuple[int, int]]
) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in mapping]
    try:
        return os.posix_spawn(
            path,
            argv,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_signal.valid_signals(),
        )
    except NotImplementedError:  # a Python built on a C library from before 2017
        return fork(path, argv, env, mapping)


def fork(
    path: bytes, argv: list[bytes], env: dict[bytes, bytes], mapping: list[tuple[int, int]]
) -> int:
    """What posix_spawn does, eight times slower (0.8 ms)."""
    reader, low = os.pipe()
    writer = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1 + max(target for _, target in mapping))
    os.close(low)
    pid = os.fork()
    if pid == 0:
        _become(path, argv, env, mapping, writer)
    os.close(writer)
    code = os.read(reader, 16)  # its end comes with the exec
    os.close(reader)
    if code:
        os.waitpid(pid, 0)
        raise OSError(int(code), os.strerror(int(code)))
    return pid


def _become(
    path: bytes,
    argv: list[bytes],
    env: dict[bytes, bytes],
    mapping: list[tuple[int, int]],
    errors: int,
) -> None:
    try:
        os.setsid()
        for source, target in mapping:
            os.dup2(source, target)
        for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        os.execve(path, argv, env)
    except OSError as error:
        os.write(errors, str(error.errno).encode())
    finally:
        os._exit(127)


def _limit(pid: int, limits: list[Limit]) -> None:
    """Limit a child that runs since a few microseconds, and may be done by now if it is short.

    Before the exec it would take a fork, of ms; the client's event loop may be busy.
    """
    import resource  # most children have no limits, and loading it takes as long as a spawn

    try:
        for which, soft, hard in limits:
            most = resource.prlimit(pid, which)[1]
            if most != resource.RLIM_INFINITY:  # only root may go above
                soft, hard = min(soft, most), min(hard, most)
            resource.prlimit(pid, which, (soft, hard))
    except (OSError, ValueError) as error:
        raise Refused("limits", getattr(error, "errno", errno.EINVAL)) from None


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise Refused("pidfd", error.errno) from None


def _kill_group(pid: int) -> None:
    try:  # noqa: SIM105
        os.killpg(pid, _signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _stop(signum: int, frame: object) -> None:
    raise Stop


def _make_room() -> None:
    """Hold a descriptor with a high number, for a fork's table is as large as ours."""
    try:  # noqa: SIM105
        fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, ROOM_FDS - 1)
    except OSError:  # our limit is lower
        pass


def _set_name() -> None:
    """The name that `ps` and `top` show."""
    try:
        comm = os.open("/proc/self/comm", os.O_WRONLY)
        os.write(comm, b"qmpkit-spawner")
        os.close(comm)
    except OSError:
        return


def main() -> None:
    for ignored in (_signal.SIGINT, _signal.SIGHUP):
        _signal.signal(ignored, _signal.SIG_IGN)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM,))
    _signal.signal(_signal.SIGTERM, _stop)
    os.chdir("/")
    _set_name()
    _make_room()
    try:  # noqa: SIM105
        Spawner(int(sys.argv[1]), int(sys.argv[2])).serve()
    except (Stop, ConnectionError):
        pass  # ECONNRESET, EPIPE: the client went away in the middle of a request
    os._exit(0)


if __name__ == "__main__":
    main()
