"""Machines that outlive us: started on sockets with paths, and connected to again later."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
)
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import attrs
import trio

from qmpkit._trio import ServiceNursery, service_nursery
from qmpkit.errors import HostLacks, LaunchFailed, QmpkitError
from qmpkit.host.resolve import Resolution
from qmpkit.machine.grouping import grouped
from qmpkit.machine.launch import (
    LaunchOptions,
    Wiring,
    check_links,
    environment,
    failing_launch,
    give_shares,
    give_store,
)
from qmpkit.machine.machine import Graces, Machine
from qmpkit.machine.ready import get_ready
from qmpkit.machine.shares import Serve, adopt, keeping
from qmpkit.machine.state import State
from qmpkit.process.child import ChildLike
from qmpkit.process.errors import SpawnFailed
from qmpkit.process.identity import Identity
from qmpkit.process.kept import KeptChild, KeptLike, adopted, kept_child, open_log
from qmpkit.process.places import fresh
from qmpkit.process.rundir import socket_path
from qmpkit.process.sockets import listening_socket
from qmpkit.qmp.connect import connect
from qmpkit.qmp.errors import CommandRefused, MonitorSilent
from qmpkit.qmp.session import Session
from qmpkit.spec.argv import TOOLS, render
from qmpkit.spec.chardev import FdEndpoint
from qmpkit.spec.facts import Facts
from qmpkit.spec.machine import MachineSpec, channels, served

__all__ = [
    "First",
    "Ground",
    "Home",
    "KeptStart",
    "QemuGround",
    "WrongMachine",
    "attached",
    "begun",
]
__all__ += ["examined"]

# QEMU stays when its guest is down, so that how it went is known also to a supervisor
# that was dead at that moment.
ACTIONS = {"shutdown": "pause", "panic": "pause"}
_ACTIONS_COMMAND = "set-action"  # came with `-action`, in 6.0


@attrs.frozen
class Home:
    """Where one kept machine's sockets and logs are."""

    sockets: Path
    logs: Path

    @property
    def stderr(self) -> Path:
        """The file that QEMU itself writes its stderr to."""
        return self.logs / "stderr.log"

    def socket(self, channel: str) -> Path:
        """The socket of one channel: "qmp", `TOOLS`, a serial's name, "agent"."""
        return socket_path(self.sockets, channel)


@attrs.frozen
class KeptStart:
    """A process that was started to be kept, and is not yet, and those that serve it."""

    child: KeptLike
    argv: tuple[str, ...]
    servers: Mapping[str, ChildLike] = attrs.field(factory=dict)

    async def keep(self) -> bool:
        """Let all of it outlive us from now on; False when QEMU has ended already."""
        for server in self.servers.values():  # first: without a QEMU they end by themselves
            assert isinstance(server, KeptChild)
            await server.keep()
        return await self.child.keep()


First = Callable[[], Awaitable[object]]
"""Something that must have happened before a process may be started."""


class Ground(Protocol):
    """Who starts and finds kept processes: `QemuGround`, or a fake in tests."""

    def start(
        self,
        resolution: Resolution,
        home: Home,
        links: Mapping[str, int],
        first: First,
        *,
        incoming: bool = False,
        silent: Collection[str] = (),
    ) -> AbstractAsyncContextManager[KeptStart]:
        """Start the process; leaving the block kills it unless it is kept by then.

        *links*: our descriptors of devices that it takes, by NIC id; they stay ours.
        *first* is awaited before the process is started, not before all is ready for it.
        *incoming*: it waits for a guest that migrates to it; *silent*: its NICs that hear
        nothing until then.
        """

    def adopt(self, identity: Identity, home: Home) -> AbstractAsyncContextManager[KeptLike]:
        """Watch one of an earlier program's; raises ProcessVanished when it is not alive."""


class WrongMachine(QmpkitError):
    """Another machine than the one on record answers at its monitor."""

    def __init__(self, machine: str, wanted: str, found: str) -> None:
        self.machine = machine
        self.wanted = wanted
        self.found = found
        super().__init__(machine, wanted, found)

    def __str__(self) -> str:
        return (
            f"what answers at the monitor of machine {self.machine!r} has the UUID "
            f"{self.found}, not {self.wanted}: it is another machine, and is left alone"
        )


class QemuGround:
    """The real one."""

    @asynccontextmanager
    async def start(
        self,
        resolution: Resolution,
        home: Home,
        links: Mapping[str, int],
        first: First,
        *,
        incoming: bool = False,
        silent: Collection[str] = (),
    ) -> AsyncIterator[KeptStart]:
        """Start QEMU, paused, its channels listening in *home*.

        Raises HostLacks, SpecInvalid or LaunchFailed.
        """
        spec = resolution.spec
        _check(resolution, links)
        async with AsyncExitStack() as ours:
            group = await ours.enter_async_context(grouped(spec))
            with ExitStack() as theirs:
                try:
                    wiring, log = await trio.to_thread.run_sync(_wired, spec, home, theirs)
                except HostLacks:
                    await first()  # where that fails too, as on a full disk, it says more
                    raise
                for nic, fd in links.items():
                    wiring.endpoints[nic] = FdEndpoint(wiring.take(fd))
                servers = await give_shares(spec, _keeping(home), wiring, ours, theirs)
                await give_store(resolution, wiring, theirs)
                argv = render(
                    spec,
                    resolution.facts,
                    wiring.endpoints,
                    incoming=incoming,
                    silent=silent,
                    actions=ACTIONS,
                    store=wiring.store,
                    checked=True,
                )
                await first()
                started = kept_child(
                    argv,
                    stderr=home.stderr,
                    log=log,
                    fds=wiring.theirs,
                    env=environment(spec),
                    group=group,
                    name=spec.name,
                )
                process = await _entered(ours, started, spec.name, argv)
            yield KeptStart(process, tuple(argv), servers)

    def adopt(self, identity: Identity, home: Home) -> AbstractAsyncContextManager[KeptLike]:
        """Watch the QEMU that *identity* means."""
        return adopted(identity, stderr=home.stderr)


def _keeping(home: Home, *, at_once: bool = False) -> Serve:
    return partial(keeping, sockets=home.sockets, logs=home.logs, at_once=at_once)


async def _entered(
    stack: AsyncExitStack,
    started: AbstractAsyncContextManager[KeptLike],
    name: str,
    argv: Sequence[str],
) -> KeptLike:
    try:
        return await stack.enter_async_context(started)
    except SpawnFailed as failed:
        raise LaunchFailed(name, argv, None, str(failed), failed.cure) from failed


def _check(resolution: Resolution, links: Mapping[str, int]) -> None:
    check_links(resolution.spec, links)  # the other end of a socket would die with us
    if _ACTIONS_COMMAND not in resolution.capabilities.commands:
        what = f"{resolution.facts.binary} has no -action, without which a guest's end is lost"
        raise HostLacks(what, "use QEMU 6.0 or later for machines that are kept")


def _wired(spec: MachineSpec, home: Home, theirs: ExitStack) -> tuple[Wiring, int]:
    """A listening socket for every channel, and the log.  Blocking: some quick system calls."""
    fresh(home.sockets)
    wiring = Wiring()
    try:
        for channel in (*channels(spec), TOOLS):
            listener = theirs.enter_context(listening_socket(home.socket(channel)))
            wiring.hand_over(channel, listener, listen=True)
    except OSError as error:
        what = f"cannot make the sockets of machine {spec.name!r}: {error.strerror}"
        raise HostLacks(what, "raise the limit of open files (ulimit -n)") from error
    try:
        return wiring, theirs.enter_context(open_log(home.stderr))
    except OSError as error:
        what = f"cannot write the log of machine {spec.name!r}: {error}"
        raise HostLacks(what, "free some space there, or make it writable") from error


@asynccontextmanager
async def _layers() -> AsyncIterator[tuple[ExitStack, ServiceNursery, AsyncExitStack]]:
    # QEMU may live on: what its services read from is closed after they have ended.
    with ExitStack() as outer:
        async with service_nursery() as services, AsyncExitStack() as stack:
            yield outer, services, stack


@asynccontextmanager
async def begun(
    resolution: Resolution,
    started: KeptStart,
    home: Home,
    options: LaunchOptions,
) -> AsyncIterator[Machine]:
    """The machine of a process that has just been started, which is paused.

    Leaving the block stops QEMU in order, unless it is kept by then.
    Raises LaunchFailed when QEMU ends or stays silent before it greets.
    """
    spec, child = resolution.spec, started.child
    async with _layers() as (outer, services, stack):
        async with failing_launch(spec.name, child, started.argv):
            monitor = connect(
                home.socket("qmp"),
                name=spec.name,
                greeting_timeout=options.ready_within,
                observer=options.observer,
            )
            session = await stack.enter_async_context(monitor)
        machine = Machine(
            spec,
            resolution.facts,
            started.argv,
            child,
            session,
            _streams(outer, spec, home),
            services,
            State.INCOMING if options.incoming or spec.resume_from else State.PAUSED,
            options.graces,
        )
        outer.enter_context(machine.lifecycle)
        services.start_soon(machine.follow, name=f"follow {machine.name}")
        machine.shares.serve = _keeping(home, at_once=True)
        machine.shares.begin(started.servers)
        try:
            await get_ready(machine)
            yield machine
        finally:
            if not child.kept:
                with trio.move_on_after(options.graces.total, shield=True):
                    await machine.stop()


@asynccontextmanager
async def attached(
    spec: MachineSpec,
    facts: Facts,
    argv: Sequence[str],
    child: KeptLike,
    home: Home,
    *,
    patience: float,
    graces: Graces,
) -> AsyncIterator[Machine]:
    """Connect again to the machine of a living process; leaving the block leaves it.

    When its monitor does not answer within *patience* seconds, the second is tried.
    Raises `MonitorAbsent`, `MonitorSilent`, `MonitorBusy`, `MonitorLost` or
    `MonitorGarbled` as `connect` does, and `WrongMachine` when another one answers.
    """
    first, second = home.socket("qmp"), home.socket(TOOLS)
    if not first.exists():  # somebody has removed it
        first, second = second, first
    async with _layers() as (outer, services, stack):
        session = await stack.enter_async_context(
            connect(
                first,
                second=second,
                name=spec.name,
                greeting_timeout=patience,
            )
        )
        machine = Machine(spec, facts, argv, child, session, {}, services, State.PAUSED, graces)
        outer.enter_context(machine.lifecycle)  # before the question: no change is missed
        machine.found(await examined(session, spec, patience), child.identity.age)
        machine.streams = _streams(outer, spec, home)
        services.start_soon(machine.follow, name=f"follow {machine.name}")
        machine.shares.serve = _keeping(home, at_once=True)
        look_after = partial(adopt, machine.shares, sockets=home.sockets, logs=home.logs)
        for share in served(spec):
            services.start_soon(look_after, share.id)
        yield machine


async def examined(session: Session, spec: MachineSpec, patience: float) -> str:
    """The run state (`query-status`) of the machine that *spec* is, and no other.

    Raises MonitorSilent after *patience* seconds, `WrongMachine` when another one answers.
    """
    # The greeting comes from a thread of the monitors; a stuck QEMU answers nothing else.
    with trio.move_on_after(patience):
        uuid = await _answer(session, "query-uuid", "UUID")
        if spec.uuid is not None and uuid.lower() != spec.uuid.lower():
            raise WrongMachine(spec.name, spec.uuid, uuid)
        return await _answer(session, "query-status", "status")
    raise MonitorSilent(spec.name, patience)


async def _answer(session: Session, command: str, key: str) -> str:
    try:
        reply: Mapping[str, Any] = await session.execute(command)
    except CommandRefused:
        return ""
    return str(reply.get(key, ""))


def _streams(stack: ExitStack, spec: MachineSpec, home: Home) -> dict[str, trio.abc.Stream]:
    streams: dict[str, trio.abc.Stream] = {}
    for name in channels(spec)[1:]:
        sock = stack.enter_context(_dialled(home.socket(name)))
        streams[name] = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    return streams


def _dialled(path: Path) -> socket.socket:
    """Our end of a channel; one that has ended when its socket is no more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(os.fspath(path))
    except OSError:  # removed, or its queue is full of others who want to look
        sock.close()
        sock, other = socket.socketpair()
        other.close()
        sock.setblocking(False)
    return sock
