"""From a resolved spec to a machine that takes commands, and back to nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
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
from qmpkit.errors import Fault, HostLacks, LaunchFailed, SpecInvalid
from qmpkit.host.resolve import Resolution
from qmpkit.images.varstore import private_store
from qmpkit.machine.grouping import grouped
from qmpkit.machine.machine import Graces, Machine
from qmpkit.machine.ready import get_ready
from qmpkit.machine.shares import Serve, serving
from qmpkit.machine.state import State
from qmpkit.machine.state_forms import OpenState
from qmpkit.process.cgroup import Group
from qmpkit.process.child import Child, ChildLike, child
from qmpkit.process.errors import SpawnFailed
from qmpkit.process.sockets import listening_socket, remover_of
from qmpkit.qmp.errors import MonitorAbsent, MonitorGarbled, MonitorLost, MonitorSilent
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Observer, Session
from qmpkit.spec.argv import TOOLS, render
from qmpkit.spec.chardev import Endpoint, FdEndpoint
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec, channels, links, served
from qmpkit.spec.network import TapNic

__all__ = ["LaunchOptions", "Started", "Starter", "launched", "start_qemu"]
# For machines that are kept:
__all__ += ["Wiring", "check_links", "environment", "failing_launch", "give_shares", "give_store"]

# When QEMU closes its monitor before it greeted, its exit status follows at once.
_STATUS_FOLLOWS = 5.0
_FIRST_FD = 3

# A block job's buffers are memory that glibc gives back to the kernel and asks for again with
# each request, which is half of the CPU time of a backup.  With these it keeps up to 32 MiB.
_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}


def _optional_path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)


@attrs.frozen
class LaunchOptions:
    """How one start is done; none of it belongs to the machine itself.

    `ready_within`: seconds until QEMU must have greeted.  `incoming`: start with
    `-incoming defer`, to be fed by a migration or a saved state.  `state`: one that QEMU
    inherits, so that it can be loaded without being handed over.  `tools_socket`:
    path of a second QMP monitor for other programs.  `links`: connected sockets for
    the NICs that have no address of their own, by NIC id; they stay the caller's.
    `stderr_log`: file that gets all of QEMU's stderr (bounded).  `observer` sees
    every QMP message.  `graces`: how long QEMU has to end, whoever ends it.
    """

    ready_within: float = 30.0
    graces: Graces = attrs.field(factory=Graces)
    incoming: bool = False
    state: OpenState | None = None
    tools_socket: Path | None = attrs.field(default=None, converter=_optional_path)
    links: Mapping[str, socket.socket] = attrs.field(factory=dict)
    stderr_log: Path | None = attrs.field(default=None, converter=_optional_path)
    observer: Observer | None = None


@attrs.frozen
class Started:
    """A process that has been started, with our ends of its channels, and those that serve it."""

    child: ChildLike
    argv: tuple[str, ...]
    sockets: Mapping[str, socket.socket]
    servers: Mapping[str, ChildLike] = attrs.field(factory=dict)


Starter = Callable[[Resolution, LaunchOptions], AbstractAsyncContextManager[Started]]


@asynccontextmanager
async def start_qemu(resolution: Resolution, options: LaunchOptions) -> AsyncIterator[Started]:
    """Start a real QEMU, its channels on socketpairs that no stranger can reach.

    Leaving the block kills the process if it still runs and closes everything.
    """
    spec = resolution.spec
    async with AsyncExitStack() as ours:
        group = await ours.enter_async_context(grouped(spec))
        with ExitStack() as theirs:
            wiring = _wire(spec, options, ours, theirs)
            servers = await give_shares(spec, serving, wiring, ours, theirs)
            await give_store(resolution, wiring, theirs)
            argv = render(
                spec,
                resolution.facts,
                wiring.endpoints,
                incoming=options.incoming,
                store=wiring.store,
                checked=True,
            )
            process = await _run(ours, spec, argv, wiring, options, group)
        # Their ends are closed here now: QEMU's death is an end of file on ours.
        yield Started(process, tuple(argv), wiring.ours, servers)


async def give_store(resolution: Resolution, wiring: Wiring, theirs: ExitStack) -> None:
    """Hand over the UEFI variables that end with the machine, when it has such."""
    uefi, flash = resolution.spec.firmware, resolution.facts.flash
    if isinstance(uefi, Uefi) and uefi.vars is None and flash is not None:
        made = await trio.to_thread.run_sync(private_store, flash.template)
        wiring.store = wiring.take(theirs.enter_context(made).fileno())


async def give_shares(
    spec: MachineSpec, serve: Serve, wiring: Wiring, ours: AsyncExitStack, theirs: ExitStack
) -> dict[str, ChildLike]:
    """Start what serves the directories that it shares, and hand over what leads there."""
    servers = {}
    for share in served(spec):
        found = await ours.enter_async_context(serve(share))
        wiring.hand_over(share.id, theirs.enter_context(found.cable))
        servers[share.id] = found.child
    return servers


async def _run(
    ours: AsyncExitStack,
    spec: MachineSpec,
    argv: list[str],
    wiring: Wiring,
    options: LaunchOptions,
    group: Group | None,
) -> Child:
    process = child(
        argv,
        fds=wiring.theirs,
        env=environment(spec),
        stderr_log=options.stderr_log,
        group=group,
        name=spec.name,
    )
    try:
        return await ours.enter_async_context(process)
    except SpawnFailed as failed:
        raise LaunchFailed(spec.name, argv, None, str(failed), failed.cure) from failed


def environment(spec: MachineSpec) -> dict[str, str]:
    """QEMU's environment: ours, and what *spec* adds to it."""
    return {**_HEAP, **os.environ, **spec.env}


class Wiring:
    """The channels of one start: our sockets, the child's fds, and how argv names them."""

    def __init__(self) -> None:
        self.ours: dict[str, socket.socket] = {}
        self.theirs: dict[int, int] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.store: int | None = None

    def hand_over(self, channel: str, sock: socket.socket, *, listen: bool = False) -> None:
        """Give the child one end of a channel, connected or listening."""
        self.endpoints[channel] = FdEndpoint(self.take(sock.fileno()), listen=listen)

    def take(self, fd: int) -> int:
        """The number that our *fd* has in the child."""
        number = _FIRST_FD + len(self.theirs)
        self.theirs[number] = fd
        return number


def _wire(
    spec: MachineSpec, options: LaunchOptions, ours: AsyncExitStack, theirs: ExitStack
) -> Wiring:
    wiring = Wiring()
    for channel in channels(spec):
        mine, its = socket.socketpair()
        wiring.ours[channel] = ours.enter_context(mine)
        wiring.hand_over(channel, theirs.enter_context(its))
        mine.setblocking(False)
    check_links(spec, options.links)
    for nic, link in options.links.items():
        wiring.hand_over(nic, link)
    if options.state is not None:
        options.state.inherited = wiring.take(options.state.fd)
    if options.tools_socket is not None:
        listener = theirs.enter_context(_listen(options.tools_socket, spec.name))
        ours.callback(remover_of(options.tools_socket))
        wiring.hand_over(TOOLS, listener, listen=True)
    return wiring


def _listen(path: Path, machine: str) -> socket.socket:
    try:
        return listening_socket(path)
    except (SpecInvalid, HostLacks) as error:
        error.source = f"machine {machine!r}"
        raise


def check_links(spec: MachineSpec, given: Collection[str]) -> None:
    """Refuse NICs without their socket, and sockets without their NIC."""
    wanted = links(spec)
    faults = [
        Fault(f"nics[{number}].ifname", "is missing", "sudo ip tuntap add dev tap0 mode tap")
        if isinstance(nic, TapNic)
        else Fault(
            f"nics[{number}]",
            f"{nic.id!r} has no address, and no socket came with the start",
            f"LaunchOptions(links={{{nic.id!r}: a socket}})",
        )
        for number, nic in enumerate(spec.nics)
        if nic.id in wanted and nic.id not in given
    ]
    faults += [
        Fault("links", f"{name!r} is no NIC that takes a socket", f"these do: {list(wanted)}")
        for name in given
        if name not in wanted
    ]
    if faults:
        raise SpecInvalid(faults, f"machine {spec.name!r}")


@asynccontextmanager
async def launched(
    resolution: Resolution,
    options: LaunchOptions | None = None,
    *,
    start: Starter = start_qemu,
    meanwhile: Callable[[Machine], object] | None = None,
) -> AsyncIterator[Machine]:
    """Start the machine, paused before its first instruction, and stop it at the block's end.

    *meanwhile* is given the machine while QEMU starts, which takes no command yet: what has
    to be made around it costs no time then.  It must not block.

    Raises LaunchFailed when QEMU ends or stays silent before it greets.  The end of
    the block stops QEMU in order (quit, SIGTERM, SIGKILL) also when the block fails
    or is cancelled, within `options.graces.total` seconds.  A death of QEMU does not
    cancel the block: `Machine.wait` tells.
    """
    options = options or LaunchOptions()
    async with service_nursery() as services, AsyncExitStack() as stack:
        started = await stack.enter_async_context(start(resolution, options))
        session = await stack.enter_async_context(_dialled(resolution.spec.name, started, options))
        machine = Machine(
            resolution.spec,
            resolution.facts,
            started.argv,
            started.child,
            session,
            _streams(started),
            services,
            State.INCOMING if options.incoming or resolution.spec.resume_from else State.PAUSED,
            options.graces,
        )
        stack.enter_context(machine.lifecycle)
        if meanwhile is not None:
            meanwhile(machine)
        async with failing_launch(machine.name, started.child, started.argv):
            await session.negotiate(options.ready_within)
        services.start_soon(machine.follow, name=f"follow {machine.name}")
        machine.shares.begin(started.servers)
        try:
            await get_ready(machine)
            yield machine
        finally:
            with trio.move_on_after(options.graces.total, shield=True):
                await machine.stop()


def _dialled(
    name: str, started: Started, options: LaunchOptions
) -> AbstractAsyncContextManager[Session]:
    sock, observer = started.sockets["qmp"], options.observer
    return open_session(sock, name=name, greeting_timeout=None, observer=observer)


@asynccontextmanager
async def failing_launch(name: str, child: ChildLike, argv: Sequence[str]) -> AsyncIterator[None]:
    """Whatever prevents the QMP session is a failed launch, told with QEMU's words."""
    try:
        yield
    except MonitorSilent as silent:
        waited = f"it was silent for {silent.waited:g} s and was killed"
        cure = f"{waited}; raise `ready_within` if this host is that slow"
        raise await _failed(name, child, argv, cure) from silent
    except (MonitorLost, MonitorAbsent) as lost:
        with trio.move_on_after(_STATUS_FOLLOWS):
            await child.wait()
        cure = "it closed its monitor, went on and was killed; look at what starts it (`launcher`)"
        raise await _failed(name, child, argv, cure) from lost
    except MonitorGarbled as garbled:
        cure = f"what answered is no QEMU ({garbled.why}) and was killed; look at `qemu`"
        raise await _failed(name, child, argv, cure) from garbled


async def _failed(
    name: str, child: ChildLike, argv: Sequence[str], cure_if_alive: str
) -> LaunchFailed:
    """The error for a QEMU that ended, or that has to be killed, before it was ready."""
    status = child.status
    if status is None:
        child.kill()
        await child.wait()
    tail = child.stderr_tail
    cure = cure_if_alive if status is None else _cure_for(tail)
    return LaunchFailed(name, argv, None if status is None else str(status), tail, cure)


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
    "Invalid password": "name the file with the secret of that image: luks.key_file, luks.bases",
    "Cannot allocate memory": "give the machine less memory, or free some on this host",
    "Could not access KVM kernel module": 'use accel = "tcg", or make /dev/kvm accessible',
}


def _cure_for(stderr: str) -> str:
    return next((cure for text, cure in _CURES.items() if text in stderr), "")
