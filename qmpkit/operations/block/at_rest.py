"""The disks of a machine that is down, with the operations of one that runs.

A qemu-storage-daemon has the images open meanwhile, so that nobody else writes to them; it
takes the same commands as QEMU and has no devices, so what each disk has in it is told by us.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import attrs
import trio

from qmpkit.errors import Fault, LaunchFailed, SpecInvalid
from qmpkit.host.chain import Chain
from qmpkit.host.encrypted import encrypted_problems, secret_problems, with_secrets
from qmpkit.host.findings import raise_problems
from qmpkit.host.tools import storage_daemon
from qmpkit.images.in_use import checked_chain, refuse_used
from qmpkit.images.tool import Asked
from qmpkit.machine.ledger import Ledger, Unwritten
from qmpkit.machine.turn import Turn
from qmpkit.operations.block.fronts import Backups, Disks, Snapshots
from qmpkit.operations.block.graph import file_of
from qmpkit.operations.block.saved_memory import goes_on_saved
from qmpkit.process.child import child
from qmpkit.qmp.errors import MonitorGarbled, MonitorLost, MonitorSilent
from qmpkit.qmp.events import Subscription
from qmpkit.qmp.opening import open_session
from qmpkit.qmp.session import Session
from qmpkit.spec.block import Disk, blockdevs_of, disk_node
from qmpkit.spec.check import check_types
from qmpkit.spec.encryption import BaseImage, encryption_of, secret_objects
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import secret_id
from qmpkit.spec.options import Json
from qmpkit.spec.snapshots import layer_node

__all__ = ["AtRest", "at_rest"]

QUIT_GRACE = 10.0
"""Seconds that the storage daemon has to write out what it holds, before it is killed."""

_MONITOR = 3


class AtRest:
    """A machine that is down, for what can be done to its disks; `at_rest` makes it.

    `disks`, `snapshots` and `backups` are as of a `VM`, and `spec` follows them: start the
    machine from that.  What needs a guest, its memory or its devices is refused.
    """

    def __init__(self, spec: MachineSpec, qmp: Session, ledger: Ledger) -> None:
        self.spec = spec
        self.ledger = ledger
        self.changing = Turn(spec.name)
        self.is_down = True
        self.maimed = ""
        self.disks = Disks(self)
        self.snapshots = Snapshots(self, self._frozen)
        self.backups = Backups(self, self._frozen)
        self._qmp = qmp

    @property
    def name(self) -> str:
        """The machine's name, as in its spec."""
        return self.spec.name

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        fds: Sequence[int] = (),
        oob: bool = False,
    ) -> Any:
        """Send one QMP command to the storage daemon and return what it returned.

        SpecInvalid for those that need a running machine.
        """
        if command in _RUNNING:
            fault = Fault("", f"{command} needs a running machine, and it is down", "start it")
            raise SpecInvalid([fault], f"machine {self.name!r}")
        if command == "query-block":
            return [block async for block in self._blocks()]
        return await self._qmp.execute(command, arguments, fds=fds, oob=oob)

    def subscribe(
        self, *names: str, where: Mapping[str, Any] | None = None, buffer: int = 1000
    ) -> Subscription:
        """Events of the storage daemon called *names* whose data match *where*."""
        return self._qmp.subscribe(*names, where=where, buffer=buffer)

    async def _blocks(self) -> AsyncIterator[Mapping[str, Any]]:
        """As QEMU would answer: what is in the device of each disk."""
        nodes = await self._qmp.execute("query-named-block-nodes", {"flat": True})
        graph = await self._qmp.execute("x-debug-query-block-graph")
        tops = dict(_by_file(nodes, graph))
        for disk in self.spec.disks:
            if disk.file in tops:
                inserted = {"node-name": tops[disk.file], "file": disk.file}
                yield {"qdev": f"/machine/peripheral/{disk.id}", "inserted": inserted}

    def _frozen(self) -> AbstractAsyncContextManager[int]:
        fault = Fault("freeze", "it is down: nothing is to be frozen", "leave freeze out")
        raise SpecInvalid([fault], f"machine {self.name!r}")


_RUNNING = ("snapshot-save", "snapshot-load", "snapshot-delete")


def _by_file(
    nodes: Sequence[Mapping[str, Any]], graph: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """The node of the format above each file."""
    names = {item["id"]: item["name"] for item in graph["nodes"]}
    files = {node["node-name"]: file_of(node) for node in nodes}
    for edge in graph["edges"]:
        if edge["name"] == "file":
            yield files[names[edge["child"]]], names[edge["parent"]]


@asynccontextmanager
async def at_rest(spec: MachineSpec, *, ledger: Ledger | None = None) -> AsyncIterator[AtRest]:
    """The disks that a machine can write to, open for operations while it is down.

        async with qmpkit.at_rest(spec) as machine:
            await machine.snapshots.take("before")
            spec = machine.spec

    Those of a saved machine are only read, as its RAM fits them as they are: a snapshot puts a
    layer above them, what would write to them is refused.

    Nothing outlives the block.  *ledger* is told of changes, as a supervisor's is.
    Raises SpecInvalid for what is no machine, ImageInUse when a QEMU has an image open,
    BinaryMissing without qemu-storage-daemon, CommandRefused when an image cannot be opened.
    """
    check_types(spec)
    spec, disks = _writable(spec)
    problems = await trio.to_thread.run_sync(lambda: [*secret_problems(spec)])
    raise_problems(problems, f"machine {spec.name!r}")
    chains = await trio.to_thread.run_sync(lambda: [(disk, _chain(disk)) for disk in disks])
    async with _daemon(spec.name) as qmp:
        for disk, chain in chains:
            for secret in secret_objects(disk.id, disk.luks):
                await qmp.execute("object-add", secret)
            for blockdev in _blockdevs(_as_opened(spec, disk), chain):
                await qmp.execute("blockdev-add", blockdev)
        yield AtRest(spec, qmp, ledger or Unwritten())


def _writable(spec: MachineSpec) -> tuple[MachineSpec, list[Disk]]:
    """With absolute paths, and the disks that are opened."""
    disks = [
        disk if disk.is_empty else attrs.evolve(disk, file=os.path.abspath(disk.file))  # noqa: PTH100
        for disk in spec.disks
    ]
    spec = attrs.evolve(spec, disks=disks)
    opened = [disk for disk in spec.disks if not disk.is_readonly]
    if not opened and not spec.snapshots:  # those of its RAM alone need no disk to be deleted
        fault = Fault("disks", "it has no disk that it can write to")
        raise SpecInvalid([fault], f"machine {spec.name!r}")
    return spec, opened


def _chain(disk: Disk) -> Chain:
    """Its images, which are sound and nobody's; blocking."""
    asked = Asked.of("open", disk.file)
    refuse_used(asked, for_writing=True)
    chain = checked_chain(asked, disk.format)
    found = encrypted_problems(disk, chain, disk.id, own=True)
    raise_problems([*found], f"disk {disk.id!r}")
    return chain


def _as_opened(spec: MachineSpec, disk: Disk) -> Disk:
    """Only read when the machine is saved: one with dirty bitmaps is written to as it opens."""
    return attrs.evolve(disk, readonly=True) if goes_on_saved(spec) else disk


def _blockdevs(disk: Disk, chain: Chain) -> Iterator[Json]:
    """Every layer by a name of its own, from the bottom up.

    A node that only its overlay holds would go with that, and after a merge it is the disk's.
    """
    name, names = disk_node(disk), [disk_node(disk)]
    for _ in chain.layers[1:]:
        name = layer_node(name, set())
        names.append(name)
    bases = [BaseImage(str(it.path), it.format, "file", None) for it in chain.layers[1:]]
    if disk.luks is not None:
        bases = [*with_secrets(disk.luks, chain.layers[1:])]
    backing: str | None = None
    for base, node in reversed([*zip(bases, names[1:], strict=True)]):
        file = {"driver": base.driver, "node-name": f"{node}-file", "filename": base.file}
        yield {**file, "auto-read-only": True}
        format: dict[str, object] = {
            "driver": base.format,
            "node-name": node,
            "file": f"{node}-file",
        }
        if base.secret is not None:
            format |= encryption_of(base.format, secret_id(disk.id, base.secret))
        yield {**format, "read-only": True} | ({} if backing is None else {"backing": backing})
        backing = node
    lower, upper = blockdevs_of(disk)
    yield lower
    yield upper if backing is None else {**upper, "backing": backing}


@asynccontextmanager
async def _daemon(name: str) -> AsyncIterator[Session]:
    """A storage daemon for the length of the block."""
    program = await trio.to_thread.run_sync(storage_daemon)
    channel = f"socket,id=qk-qmp,fd={_MONITOR}"
    argv = [program, "--chardev", channel, "--monitor", "chardev=qk-qmp"]
    ours, theirs = socket.socketpair()
    async with AsyncExitStack() as stack:
        stack.enter_context(ours)
        ours.setblocking(False)
        with theirs:
            started = child(argv, fds={_MONITOR: theirs.fileno()}, name=program)
            process = await stack.enter_async_context(started)
        try:
            session = await stack.enter_async_context(open_session(ours, name=name))
        except (MonitorLost, MonitorSilent) as lost:
            status = None if process.status is None else str(process.status)
            raise LaunchFailed(name, argv, status, process.stderr_tail) from lost
        try:
            yield session
        finally:
            with trio.move_on_after(QUIT_GRACE, shield=True):
                with suppress(MonitorLost, MonitorGarbled):
                    await session.execute("quit")
                await process.wait()
