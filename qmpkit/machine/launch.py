"""From a resolved spec to a machine that takes commands, and back to nothing."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
)
from pathlib import Path

import attrs
import trio

from qmpkit._trio import service_nursery
from qmpkit.errors import LaunchFailed
from qmpkit.host.resolve import Resolution
from qmpkit.machine.machine import Graces, Machine
from qmpkit.machine.state import State
from qmpkit.process.child import ChildLike, child
from qmpkit.process.rundir import bind_socket
from qmpkit.qmp.errors import MonitorGarbled, MonitorLost, MonitorSilent
from qmpkit.qmp.session import Observer, Session, open_session
from qmpkit.spec.argv import render
from qmpkit.spec.chardev import Endpoint, FdEndpoint, channels
from qmpkit.spec.machine import MachineSpec

__all__ = ["LaunchOptions", "Started", "Starter", "launched", "start_qemu"]

# When QEMU closes its monitor before it greeted, its exit status follows at once.
_STATUS_FOLLOWS = 5.0
_FIRST_FD = 3


@attrs.frozen
class LaunchOptions:
    """How one start is done; none of it belongs to the machine itself.

    `ready_within`: seconds until QEMU must have greeted.  `incoming`: start with
    `-incoming defer`, to be fed by a migration or a saved state.  `tools_socket`:
    path of a second QMP monitor for other programs.  `stderr_log`: file that gets
    all of QEMU's stderr (bounded).  `observer` sees every QMP message.
    """

    ready_within: float = 30.0
    graces: Graces = Graces()
    incoming: bool = False
    tools_socket: Path | None = None
    stderr_log: Path | None = None
    observer: Observer | None = None


@attrs.frozen
class Started:
    """A process that has been started, with our ends of its channels."""

    child: ChildLike
    argv: tuple[str, ...]
    sockets: Mapping[str, socket.socket]


Starter = Callable[[Resolution, LaunchOptions], AbstractAsyncContextManager[Started]]


@asynccontextmanager
async def start_qemu(resolution: Resolution, options: LaunchOptions) -> AsyncIterator[Started]:
    """Start a real QEMU, its channels on socketpairs that no stranger can reach.

    Leaving the block kills the process if it still runs and closes everything.
    """
    spec = resolution.spec
    async with AsyncExitStack() as ours:
        with ExitStack() as theirs:
            wiring = _wire(spec, ours, theirs)
            if options.tools_socket is not None:
                _listen_for_tools(options.tools_socket, wiring, ours, theirs)
            argv = render(
                spec, resolution.facts, wiring.endpoints, incoming=options.incoming, paused=True
            )
            process = await ours.enter_async_context(
                child(
                    argv,
                    fds=wiring.theirs,
                    env=spec.env,
                    stderr_log=options.stderr_log,
                    name=spec.name,
                )
            )
        # Their ends are closed here now: QEMU's death is an end of file on ours.
        yield Started(process, tuple(argv), wiring.ours)


@attrs.frozen
class _Wiring:
    """The channels of one start: our sockets, the child's fds, and how argv names them."""

    ours: dict[str, socket.socket] = attrs.field(factory=dict)
    theirs: dict[int, int] = attrs.field(factory=dict)
    endpoints: dict[str, Endpoint] = attrs.field(factory=dict)


def _wire(spec: MachineSpec, ours: AsyncExitStack, theirs: ExitStack) -> _Wiring:
    wiring = _Wiring()
    for fd, channel in enumerate(channels(spec), _FIRST_FD):
        mine, its = socket.socketpair()
        wiring.ours[channel] = ours.enter_context(mine)
        wiring.theirs[fd] = theirs.enter_context(its).fileno()
        wiring.endpoints[channel] = FdEndpoint(fd)
        mine.setblocking(False)
    return wiring


def _listen_for_tools(
    path: Path, wiring: _Wiring, ours: AsyncExitStack, theirs: ExitStack
) -> None:
    listener = theirs.enter_context(bind_socket(path))
    ours.callback(path.unlink, missing_ok=True)
    fd = _FIRST_FD + len(wiring.theirs)
    wiring.theirs[fd] = listener.fileno()
    wiring.endpoints["tools"] = FdEndpoint(fd, listen=True)


@asynccontextmanager
async def launched(
    resolution: Resolution,
    options: LaunchOptions | None = None,
    *,
    start: Starter = start_qemu,
) -> AsyncIterator[Machine]:
    """Start the machine, paused before its first instruction, and stop it at the block's end.

    Raises LaunchFailed when QEMU ends or stays silent before it greets.  The end of
    the block stops QEMU in order (quit, SIGTERM, SIGKILL) also when the block fails
    or is cancelled, within `options.graces.total` seconds.  A death of QEMU does not
    cancel the block: `Machine.wait` tells.
    """
    options = options or LaunchOptions()
    async with service_nursery() as services, AsyncExitStack() as stack:
        started = await stack.enter_async_context(start(resolution, options))
        session = await _greet(stack, resolution.spec.name, started, options)
        machine = Machine(
            resolution.spec,
            resolution.facts,
            started.argv,
            started.child,
            session,
            _streams(started),
            services,
            State.INCOMING if options.incoming else State.PAUSED,
        )
        services.start_soon(machine.follow, name=f"follow {machine.name}")
        try:
            yield machine
        finally:
            with trio.move_on_after(options.graces.total, shield=True):
                await machine.stop(options.graces)


async def _greet(
    stack: AsyncExitStack, name: str, started: Started, options: LaunchOptions
) -> Session:
    """Open the QMP session; whatever prevents it is a failed launch, told with QEMU's words."""
    try:
        return await stack.enter_async_context(
            open_session(
                started.sockets["qmp"],
                name=name,
                greeting_timeout=options.ready_within,
                observer=options.observer,
            )
        )
    except MonitorSilent as silent:
        started.child.kill()
        await started.child.wait()
        raise _failed(
            name,
            started,
            status=None,
            cure=f"it was silent for {silent.waited:g} s and was killed; raise `ready_within`"
            " if this host is that slow",
        ) from silent
    except (MonitorLost, MonitorGarbled) as lost:
        with trio.move_on_after(_STATUS_FOLLOWS):
            await started.child.wait()
        raise _failed(name, started, status=str(started.child.status or "no status")) from lost


def _failed(name: str, started: Started, *, status: str | None, cure: str = "") -> LaunchFailed:
    tail = started.child.stderr_tail
    return LaunchFailed(name, started.argv, status, tail, cure or _cure_for(tail))


def _streams(started: Started) -> dict[str, trio.abc.Stream]:
    return {
        name: trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        for name, sock in started.sockets.items()
        if name != "qmp"
    }


# QEMU's texts are no interface, so these only add advice to an error that is raised anyway.
_CURES = {
    "Could not set up host forwarding rule": "choose another host port: this one is taken",
    'Failed to get "write" lock': "another process has the image open: stop it first",
    'Failed to get shared "write" lock': "another process has the image open: stop it first",
    "Cannot allocate memory": "give the machine less memory, or free some on this host",
    "Could not access KVM kernel module": 'use accel = "tcg", or make /dev/kvm accessible',
}


def _cure_for(stderr: str) -> str:
    return next((cure for text, cure in _CURES.items() if text in stderr), "")
