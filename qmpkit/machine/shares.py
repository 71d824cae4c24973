"""The virtiofsds of one machine: one for each directory that it shares, as long as its device.

Each serves one connection, whose other end QEMU gets as a descriptor: no path leads there,
and QEMU's end, however it comes, is its end too.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import attrs
import trio

from qmpkit._trio import ServiceNursery
from qmpkit.errors import QmpkitError
from qmpkit.host.virtiofsd import find_virtiofsd, virtiofsd_of
from qmpkit.machine.report import ExitReport
from qmpkit.machine.turn import Turn
from qmpkit.process.child import ChildLike, child
from qmpkit.process.errors import ProcessVanished
from qmpkit.process.identity import Identity
from qmpkit.process.kept import KeptLike, adopted, kept_child, open_log
from qmpkit.process.rundir import runtime_root
from qmpkit.process.sockets import listening_socket
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.peripherals import Share

__all__ = ["Serve", "Served", "Shares", "adopt", "keeping", "serving"]

log = logging.getLogger("qmpkit.machine")

END_GRACE = 10.0
"""Seconds that ending one may take."""

# It ends by itself when QEMU lets go of it, and QEMU's end is known a moment after.
_ENDS_MEET = 2.0
_LISTENER = 3  # the descriptor's number in virtiofsd


@attrs.frozen
class Served:
    """A virtiofsd that runs, and the socket for QEMU that leads to it, until that is closed."""

    child: ChildLike
    cable: socket.socket


Serve = Callable[[Share], AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def serving(share: Share) -> AsyncIterator[Served]:
    """A virtiofsd for the block, which dies with us.

    Raises HostLacks when there is none, or none that can.
    """
    with ExitStack() as ours:
        argv, listener, cable = await _prepared(share, ours)
        fds = {_LISTENER: listener.fileno()}
        async with child(argv, fds=fds, name=_name(share.id)) as process:
            listener.close()
            yield Served(process, cable)


@asynccontextmanager
async def keeping(
    share: Share, *, sockets: Path, logs: Path, at_once: bool = False
) -> AsyncIterator[Served]:
    """One that can outlive us as its machine does, and is on record in *sockets* for that.

    *at_once*: of a machine that does already.  Should we die before its QEMU has the
    connection's other end, that is the end of it.
    """
    stderr = _log_of(logs, share.id)
    with ExitStack() as ours:
        argv, listener, cable = await _prepared(share, ours)
        written = ours.enter_context(await trio.to_thread.run_sync(open_log, stderr))
        process = kept_child(
            argv,
            stderr=stderr,
            log=written,
            fds={_LISTENER: listener.fileno()},
            name=_name(share.id),
        )
        async with process as started:
            listener.close()
            note = json.dumps(started.identity.to_dict())
            await trio.to_thread.run_sync(_note_of(sockets, share.id).write_text, note)
            if at_once:
                await started.keep()
            yield Served(started, cable)


async def _prepared(
    share: Share, ours: ExitStack
) -> tuple[list[str], socket.socket, socket.socket]:
    tool = await virtiofsd_of(await trio.to_thread.run_sync(find_virtiofsd))
    argv = tool.argv(share, _LISTENER)
    return argv, *await trio.to_thread.run_sync(_connection, ours)


def _connection(ours: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A listening socket and one that is connected to it, which nobody else can be.  Blocking."""
    path = runtime_root() / f".fs.{secrets.token_hex(4)}"
    listener = ours.enter_context(listening_socket(path))
    try:
        cable = ours.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        cable.connect(str(path))
    finally:
        path.unlink()
    return listener, cable


def _name(share: str) -> str:
    return f"virtiofsd of {share}"


def _log_of(logs: Path, share: str) -> Path:
    return logs / f"{share}.virtiofsd.log"


def _note_of(sockets: Path, share: str) -> Path:
    return sockets / f"{share}.fs"


class _Owner(Protocol):
    """The machine."""

    spec: MachineSpec
    changing: Turn
    services: ServiceNursery

    @property
    def name(self) -> str: ...

    async def wait(self) -> ExitReport: ...


@attrs.define
class _Coming:
    """One that is being started for a share that is to be plugged."""

    ready: trio.Event = attrs.field(factory=trio.Event)
    unwanted: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)
    served: Served | None = None
    error: QmpkitError | None = None


class Shares:
    """Those of one machine.  `serve` starts another; `on_lost` is told of one that has ended.

    `lost`: what is known of them, by the ids of their shares.
    """

    def __init__(self, machine: _Owner, serve: Serve = serving) -> None:
        self.serve = serve
        self.on_lost: Callable[[str], None] | None = None
        self.lost: dict[str, str] = {}
        self._machine = machine
        self._running: dict[str, ChildLike] = {}

    def begin(self, servers: Mapping[str, ChildLike]) -> None:
        """Look after those that the machine was started with."""
        for share, process in servers.items():
            self._machine.services.start_soon(self.stay_with, share, process)

    @asynccontextmanager
    async def plugging(self, share: Share) -> AsyncIterator[socket.socket]:
        """Start one for a share that is plugged within the block; the socket is for QEMU.

        It is ended when the block fails, unless the machine has the share by then.
        """
        coming = _Coming()
        self._machine.services.start_soon(self._serve, share, coming)
        try:
            with (await _arrived(coming)).cable as cable:
                yield cable
        except BaseException:
            if not self._has(share.id):
                coming.unwanted.set()
                with trio.move_on_after(END_GRACE, shield=True):
                    await coming.over.wait()
            raise

    async def _serve(self, share: Share, coming: _Coming) -> None:
        try:
            async with self.serve(share) as served:
                coming.served = served
                self.lost.pop(share.id, None)
                coming.ready.set()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_end_when, coming.unwanted, served.child)
                    await self.stay_with(share.id, served.child)
                    nursery.cancel_scope.cancel()
        except QmpkitError as error:
            coming.error = error
        finally:
            coming.ready.set()
            coming.over.set()

    async def stay_with(self, share: str, process: ChildLike) -> None:
        """To its end, which is to be that of its device or of the machine."""
        self._running[share] = process
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with_machine, process)
            status = await process.wait()
            nursery.cancel_scope.cancel()
        async with self._machine.changing.after_all():  # who unplugs it is through
            mine = self._running.get(share) is process
            if mine:
                del self._running[share]
        if not mine or not self._has(share):
            return
        with trio.move_on_after(_ENDS_MEET):
            await self._machine.wait()
            return
        self.note_lost(share, f"{status}: {process.stderr_tail}".strip().rstrip(":"))

    async def _end_with_machine(self, process: ChildLike) -> None:
        await self._machine.wait()
        with trio.move_on_after(_ENDS_MEET):
            await process.wait()
        process.kill()

    def note_lost(self, share: str, how: str) -> None:
        """It has gone, and its guest can use the share no more."""
        if not self._has(share):
            return
        told = f"the virtiofsd of its share {share!r} has ended ({how})"
        self.lost[share] = told
        cure = "unmount it in the guest, remove the share and add it again"
        log.error("machine %r: %s. Cure: %s", self._machine.name, told, cure)
        if self.on_lost is not None:
            self.on_lost(told)

    def _has(self, share: str) -> bool:
        return any(it.id == share for it in self._machine.spec.devices)


async def _arrived(coming: _Coming) -> Served:
    await coming.ready.wait()
    if coming.error is not None:
        raise coming.error
    assert coming.served is not None
    return coming.served


async def _end_when(unwanted: trio.Event, process: ChildLike) -> None:
    await unwanted.wait()
    process.kill()


async def adopt(shares: Shares, share: str, *, sockets: Path, logs: Path) -> None:
    """Look after one of a machine that was found again, which is on record in *sockets*."""
    try:
        note = json.loads(await trio.to_thread.run_sync(_note_of(sockets, share).read_text))
        found: KeptLike
        async with adopted(Identity.from_dict(note), stderr=_log_of(logs, share)) as found:
            await shares.stay_with(share, found)
    except ProcessVanished as vanished:
        shares.note_lost(share, str(vanished))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the virtiofsd of share %r cannot be watched: %s", share, error)
