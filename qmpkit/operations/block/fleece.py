"""The disks at one moment, held while a guest goes on: fleecing.

What the guest is about to overwrite is copied first, into an image of its own: that image,
with the disk below it, shows the moment for as long as it is held.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import trio

from qmpkit._trio import raise_collapsed
from qmpkit.backups.private_folder import FLEECE, SERVER, SOCKET, held_folder, removed_folder
from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.encrypting import encrypting
from qmpkit.images.new import place_empty
from qmpkit.images.tool import Asked
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.layers import remove_nodes
from qmpkit.operations.block.pull_relay import relayed
from qmpkit.operations.block.pull_tls import TLS_ID, Tcp
from qmpkit.operations.errors import JobFailed
from qmpkit.operations.job_groups import JobGroup
from qmpkit.operations.steps import LOST, STEP_GRACE
from qmpkit.operations.stillness import runs
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Subscription
from qmpkit.spec.block import threads_of
from qmpkit.spec.encryption import Luks, encryption_of
from qmpkit.spec.names import secret_id

__all__ = [
    "Fleece",
    "fleecing",
    "going_on",
    "listening",
    "refuse_threads",
    "socket_fault",
    "watched",
]

_PATH_LIMIT = 107  # bytes of the path of a socket


@attrs.frozen
class Fleece:
    """One disk that is held.

    `source`: the node that the guest writes to, of `size` bytes.  `node` shows the moment;
    `folder` is where its image and the socket are.  `luks`: how the disk is encrypted.
    """

    disk: str
    source: str
    size: int
    node: str
    folder: Path
    luks: Luks | None

    @property
    def job(self) -> str:
        """The job that copies what is about to be overwritten."""
        return f"{self.node}-{self.disk}"

    @property
    def nodes(self) -> tuple[str, str]:
        """What is added for it."""
        return self.node, f"{self.node}-file"

    @property
    def file(self) -> Path:
        """What takes the copies."""
        return self.folder / f"{self.disk}{FLEECE}"

    @property
    def uri(self) -> str:
        """Where it is served within `listening`."""
        return f"nbd+unix:///{self.disk}?socket={quote(str(self.folder / SOCKET))}"

    @property
    def action(self) -> dict[str, Any]:
        """What starts the job, in a transaction: that is the moment."""
        job = {"job-id": self.job, "device": self.source, "target": self.node, "sync": "none"}
        return {"type": "blockdev-backup", "data": {**job, "auto-dismiss": False}}


def socket_fault(folder: Path) -> Fault | None:
    """That the path of the socket in *folder* would be too long."""
    socket = folder / SOCKET
    if len(os.fsencode(socket)) <= _PATH_LIMIT:
        return None
    message = f"{socket} has more than the {_PATH_LIMIT} bytes of a socket's path"
    return Fault("folder", message, "choose a shorter one")


async def refuse_threads(machine: Changeable) -> None:
    """QEMU before 9.0 aborts when an NBD client leaves that another thread has served."""
    threaded = [disk.id for disk in machine.spec.disks if threads_of(disk) and not disk.is_readonly]
    # What serves the disks of a machine that is down has no such threads.
    if (
        threaded
        and not machine.is_down
        and (await machine.execute("query-version"))["qemu"]["major"] < 9
    ):
        message = "it has an iothread, and this QEMU, before 9.0, would abort when a client leaves"
        hint = "take iothread out of its spec, update QEMU, or use backups.run"
        faults = [Fault(f"disks.{disk}", message, hint) for disk in threaded]
        raise SpecInvalid(faults, f"machine {machine.name!r}")


@asynccontextmanager
async def fleecing(
    machine: Changeable, folder: Path, fleeces: Sequence[Fleece]
) -> AsyncIterator[None]:
    """The private folder, the images in it that take what is overwritten, and their nodes."""
    asked = Asked.of("serve disks from", folder)
    lock = await trio.to_thread.run_sync(held_folder, asked)
    try:
        for it in fleeces:
            await _add(machine, it)
        yield
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True):
            with suppress(*LOST):
                await remove_nodes(machine, (node for it in fleeces for node in it.nodes))
            await trio.to_thread.run_sync(removed_folder, lock, folder)


async def _add(machine: Changeable, it: Fleece) -> None:
    await place_empty(it.file, it.size, "qcow2", **await encrypting(it.luks))
    node, lower = it.nodes
    await machine.execute(
        "blockdev-add", {"driver": "file", "node-name": lower, "filename": str(it.file)}
    )
    upper: dict[str, object] = {"driver": "qcow2", "node-name": node, "file": lower}
    if it.luks is not None:  # what the guest overwrites is not to be there in clear
        upper |= encryption_of("qcow2", secret_id(it.disk, 0))
    await machine.execute("blockdev-add", {**upper, "backing": it.source})


@asynccontextmanager
async def listening(
    machine: Changeable,
    socket: Path,
    fleeces: Sequence[Fleece],
    bitmaps: Mapping[str, Collection[str]],
    tcp: Tcp | None = None,
) -> AsyncIterator[int | None]:
    """Serve them by NBD on *socket*, by the disks' ids, with the *bitmaps* that a disk has.

    With *tcp* there as well, and with TLS in either place; gives its port.
    QEMU has one NBD server: when it serves another's exports, this is CommandRefused.
    """
    server = socket.with_name(SERVER)
    words: dict[str, Any] = {"addr": {"type": "unix", "data": {"path": str(server)}}}
    if tcp is not None:
        words["tls-creds"] = TLS_ID
    async with _credentials(machine, tcp), _serving(machine, words):
        for it in fleeces:
            export = {"type": "nbd", "id": it.job, "node-name": it.node, "name": it.disk}
            known = [*bitmaps.get(it.disk, ())]
            await machine.execute("block-export-add", {**export, "bitmaps": known})
        async with relayed(socket, server, None if tcp is None else tcp.place) as port:
            yield port


@asynccontextmanager
async def _credentials(machine: Changeable, tcp: Tcp | None) -> AsyncIterator[None]:
    """The server's certificate, for as long as it serves by it."""
    if tcp is None:
        yield
        return
    words = {"qom-type": "tls-creds-x509", "id": TLS_ID, "dir": str(tcp.certificates)}
    try:
        await machine.execute("object-add", {**words, "endpoint": "server", "verify-peer": True})
        yield
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(CommandRefused, *LOST):
            await machine.execute("object-del", {"id": TLS_ID})


@asynccontextmanager
async def _serving(machine: Changeable, words: Mapping[str, Any]) -> AsyncIterator[None]:
    ours = True
    try:
        try:
            await machine.execute("nbd-server-start", words)
        except CommandRefused:
            ours = False
            raise
        yield
    finally:
        if ours:  # it ends the exports, whose clients are gone
            with trio.move_on_after(STEP_GRACE, shield=True), suppress(CommandRefused, *LOST):
                await machine.execute("nbd-server-stop")


@asynccontextmanager
async def watched(
    jobs: JobGroup, errors: Subscription, *, follow: bool = True
) -> AsyncIterator[None]:
    """The block is cancelled, and JobFailed raised, when the moment cannot be held any longer.

    *errors*: BLOCK_IO_ERROR of writes, since before the moment.  *follow*: the block does not
    follow the jobs itself.
    """
    try:
        async with trio.open_nursery() as nursery:
            if follow:
                nursery.start_soon(jobs.failed)
            nursery.start_soon(_refused, jobs, errors)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failed, rest = group.split((JobFailed, *LOST))
        # A job and a write of the guest may have failed at once, or QEMU has ended for both.
        raise_collapsed(group if rest or not failed else failed.derive(failed.exceptions[:1]))


async def _refused(jobs: JobGroup, errors: Subscription) -> None:
    """QEMU lets a write of the guest fail rather than lose what is held, and no job says so."""
    event = await errors.next()
    why = f"{event.data.get('reason', 'no reason given')}: a write of the guest failed by that"
    raise jobs.broken(why)


@asynccontextmanager
async def going_on(machine: Changeable) -> AsyncIterator[None]:
    """A guest that a failed write has stopped tries it again, once nothing is held any more.

    A target that is full, or broken, lets a write of the guest fail in its middle.
    """
    ran = await runs(machine)
    try:
        yield
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True), suppress(*LOST):
            if ran and (await machine.execute("query-status"))["status"] == "io-error":
                await machine.execute("cont")
