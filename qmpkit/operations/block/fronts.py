"""`vm.disks`, `vm.snapshots`, `vm.backups`: what users hold of the block operations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block import deletion, disks, inner_snapshots, media, snapshots
from qmpkit.operations.block.backup import run_backup
from qmpkit.operations.block.backup_plan import Mode, remove_bitmaps
from qmpkit.operations.block.backup_pull import Pull, drop_checkpoint, pulling
from qmpkit.operations.block.graph import Layer
from qmpkit.operations.block.snapshots import Freeze
from qmpkit.operations.jobs import Progress
from qmpkit.spec.backups import BackupPoint
from qmpkit.spec.block import DiskFormat
from qmpkit.spec.limits import IoLimits
from qmpkit.spec.snapshots import Snapshot

__all__ = ["Backups", "Disks", "Snapshots"]


class Disks:
    """The disks of one machine, by the ids that they have in its spec (`disk0`).

    What moves data is done while the guest writes.  It tells *progress* how far it is, at
    most *speed* bytes a second (0: as fast as it can), and raises JobFailed when QEMU gives
    up, with the reason; then, and when it is cancelled, all is as it was.
    """

    def __init__(self, machine: Changeable) -> None:
        self._machine = machine

    async def chain(self, disk: str) -> tuple[Layer, ...]:
        """The images that make up a disk, the one that the guest writes to first."""
        return await disks.chain_of(self._machine, disk)

    async def move(
        self,
        disk: str,
        target: str | os.PathLike[str],
        *,
        format: DiskFormat = "qcow2",
        speed: int = 0,
        progress: Progress | None = None,
    ) -> Path:
        """Have the disk in a new file *target*, whole and without layers, from now on.

        The guest's writes stand still for some milliseconds at the end
        (`blockdev-mirror`).  The files that it was in before stay where they are, as they
        were at that moment.  ImageFailed when *target* exists or cannot be made.
        """
        return await disks.move(
            self._machine, disk, target, format=format, speed=speed, progress=progress
        )

    async def flatten(self, disk: str, *, speed: int = 0, progress: Progress | None = None) -> None:
        """Copy into the disk's image what it shows of those below it (`block-stream`).

        It needs them no longer then; their files stay, for the snapshots that they are.
        """
        await disks.flatten(self._machine, disk, speed=speed, progress=progress)

    async def resize(self, disk: str, size: int | str) -> int:
        """Make the disk larger, "20GiB" or bytes; the guest sees it at once (`block_resize`).

        Partitions and file systems in it are the guest's to grow.  A smaller size is
        SpecInvalid: only a stopped machine's image can be shrunk.
        """
        return await disks.resize(self._machine, disk, size)

    async def limit(self, disk: str, limits: IoLimits | None) -> None:
        """Bound what the guest may read and write each second, from now on; None: no bounds.

        `vm.spec` has them then, and so the next start (`block_set_io_throttle`).  Raises
        SpecInvalid with all that is wrong at once; failed or cancelled, those before hold.
        """
        await disks.limit(self._machine, disk, limits)

    async def insert(
        self,
        disk: str,
        file: str | os.PathLike[str],
        *,
        format: DiskFormat | None = None,
        force: bool = False,
    ) -> None:
        """Put another medium into a CD drive, in place of what is in it; the tray is closed then.

        *format*: default that of the drive.  `vm.spec` names the file, so the next start has
        it in the drive.  A guest that holds the tray and does not let go when it is asked
        raises TrayLocked; with *force* it is opened all the same (`blockdev-open-tray`,
        `-remove-medium`, `-insert-medium`, `-close-tray`).  Raises SpecInvalid when the file is
        not there or not in that format, or the disk is no CD drive, ImageInUse when a machine
        writes to it.  Failed or cancelled, what was in it is.
        """
        await media.insert(self._machine, disk, file, format=format, force=force)

    async def eject(self, disk: str, *, force: bool = False) -> None:
        """Take out what is in a CD drive, as `insert` does; an empty one is fine."""
        await media.eject(self._machine, disk, force=force)


class Snapshots:
    """The points in time that one machine can go back to; `vm.spec` remembers them."""

    def __init__(self, machine: Changeable, freeze: Freeze) -> None:
        self._machine = machine
        self._freeze = freeze

    def list(self) -> tuple[Snapshot, ...]:
        """All of them, in the order in which they were taken; each names its parent."""
        return self._machine.spec.snapshots

    @property
    def current(self) -> str | None:
        """The snapshot that the machine goes on from."""
        return self._machine.spec.snapshot

    async def take(
        self,
        name: str,
        *,
        disks: Sequence[str] | None = None,
        folder: str | os.PathLike[str] | None = None,
        freeze: bool = False,
        ram: bool = False,
        description: str = "",
        progress: Progress | None = None,
    ) -> Snapshot:
        """Remember the disks as they are at this moment, all at the same one.

        Each gets a layer above it, `web.qcow2` → `web.<name>.qcow2` beside it or in
        *folder*, to which the guest writes from now on: about a millisecond, in one
        transaction (`blockdev-snapshot`).  *disks*: ids; default: all that it can write to.
        With *freeze* the guest's file systems are flushed and stand still for the moment
        (needs the guest agent); they go on in every case.

        UEFI variables of the machine's own are in it as a copy beside them (`web.<name>.vars`),
        for which the guest stands still some milliseconds.

        With *ram* the guest's memory and devices are in it too, in a file beside the first
        layer (`web.<name>.ram`, its user's alone; `migrate`): the guest stands still until
        that is written, `Snapshot.pause` says for how long.  A machine that has no disk to
        write to needs *folder* for that.  *progress* is told of it.  Going
        back to it takes a restart (`Supervisor.revert`, `qmpkit.reverted`).  A guest that was
        paused runs for a millisecond afterwards: QEMU saves it no second time otherwise.

        `vm.spec` names the new layers: start the machine from that the next time, for the
        files below must not be written to any more.  Raises SpecInvalid with all that is
        wrong at once, ImageFailed, CommandRefused.  Cancelled or failed, nothing is left.
        """
        where = None if folder is None else Path(folder)
        return await snapshots.take(
            self._machine,
            name,
            disks=disks,
            folder=where,
            description=description,
            freeze=self._freeze if freeze else None,
            ram=ram,
            progress=progress,
        )

    async def save(
        self, name: str, *, description: str = "", progress: Progress | None = None
    ) -> Snapshot:
        """Remember disks and RAM, held by the images themselves (`snapshot-save`).

        All disks that the guest can write to must be qcow2.  The guest stands still
        meanwhile, tenths of a second for each 100 MiB of memory in use.
        """
        async with self._machine.changing:
            if faults := list(snapshots.new_name_faults(self._machine.spec, name)):
                raise SpecInvalid(faults, f"machine {self._machine.name!r}")
            return await inner_snapshots.take_inner(
                self._machine, name, description=description, progress=progress
            )

    async def load(self, name: str, *, progress: Progress | None = None) -> None:
        """Go back to what `save` has remembered, disks and RAM (`snapshot-load`).

        The guest goes on in the run state that it was saved in; what it has done since is
        lost.  A load that fails leaves it as it was.
        """
        async with self._machine.changing:
            point = snapshots.known_snapshot(self._machine.spec, name)
            if point.kind != "internal":
                message = "its disks are layers, which a running machine cannot leave"
                if point.memory is None:
                    message = "it has no RAM: a running machine cannot go back to it"
                hint = "stop the machine and revert it"
                fault = Fault(name, message, hint)
                raise SpecInvalid([fault], f"machine {self._machine.name!r}")
            await inner_snapshots.load_inner(self._machine, point, progress=progress)

    async def sizes(self) -> dict[str, int]:
        """Bytes on the host of each snapshot's own layers; those with RAM are in the images."""
        return await snapshots.sizes_of(self.list())

    async def rename(self, name: str, to: str) -> None:
        """Give a snapshot another name; its files, and what the images hold, keep theirs.

        QEMU renames none in an image: `Snapshot.tag` is what that knows it by.
        """
        await snapshots.rename(self._machine, name, to)

    async def delete(self, name: str, *, speed: int = 0, progress: Progress | None = None) -> None:
        """Forget a snapshot; the machine's data stay.

        Of an external one, the layer above it is merged into it while the guest writes
        (`block-commit`), and that layer's file is removed.  Cancelled in the middle, the
        machine is as it was, but there is no going back to that snapshot any more
        (`Snapshot.whole`); delete it again.
        """
        await deletion.delete(self._machine, name, speed=speed, progress=progress)


class Backups:
    """Backups of one machine; `qmpkit.backups` reads, restores and prunes what they make."""

    def __init__(self, machine: Changeable, freeze: Freeze) -> None:
        self._machine = machine
        self._freeze = freeze

    async def run(
        self,
        folder: str | os.PathLike[str],
        *,
        mode: Mode = "auto",
        compress: bool = False,
        speed: int = 0,
        freeze: bool = False,
        plain: bool = False,
        compare: bool = False,
        progress: Progress | None = None,
    ) -> BackupPoint:
        """Copy all disks that the guest can write to, as they are at this moment, into *folder*.

        The guest goes on meanwhile.  Each disk becomes a qcow2 there that holds what has
        changed since the point before ("incremental": QEMU keeps a persistent dirty bitmap
        in the disk's image), or all of it ("full").  "auto" is incremental where that can
        be, and `BackupPoint.why` says where it could not: raw images hold no bitmap; a
        snapshot, a merge or a move leaves it behind; a QEMU that was killed has spoilt it.

        *folder* is made when it is not there; it takes backups of one machine.  *speed*: bytes
        a second for all disks together, 0: as fast as it can.  *freeze*: the guest's file
        systems are flushed and stand still for the moment (needs the guest agent).  *plain*:
        the layers are never encrypted, so disks that are have to be asked for in clear.  *compare*:
        the moment is held until all is copied, and each disk is read a second time and
        compared with what a restore would show, by qemu-img over a private socket in *folder*;
        what the guest overwrites meanwhile takes room there.  *progress* is told of the
        copying, of the comparison ("compare" in `state.type`), then of the checksums
        ("checksum").

        The point is there when it is whole and safe on disk.  Failed or cancelled, *folder*
        and the machine are as they were, and the next one goes on from the last point.
        Raises SpecInvalid (an "incremental" that cannot be, a folder of another machine),
        ImageInUse (another is at work in the folder), JobFailed and ImageFailed (no space),
        BackupDiffers.
        """
        return await run_backup(
            self._machine,
            Path(folder),
            mode=mode,
            compress=compress,
            speed=speed,
            freeze=self._freeze if freeze else None,
            plain=plain,
            compare=compare,
            progress=progress,
        )

    def pulling(
        self,
        folder: str | os.PathLike[str],
        *,
        since: str | None = None,
        checkpoint: str | None = None,
        freeze: bool = False,
        listen: str | None = None,
        tls: str | os.PathLike[str] | None = None,
    ) -> AbstractAsyncContextManager[Pull]:
        """Serve the disks as they are at this moment, for another backup program to fetch.

            async with vm.backups.pulling("/run/web.pull", checkpoint="monday") as pull:
                ...  # qemu-img convert pull.disks["disk0"].uri …

        By NBD, for reading, on a socket (0600) in *folder*, which is made (0700), is gone
        after the block, and takes what the guest overwrites meanwhile: it needs room.  Of an
        encrypted disk that is encrypted there; what is served is in clear.
        *checkpoint*: changes are recorded from this moment on under that name (a dirty
        bitmap in each qcow2), unless the block fails.  *since*: what has changed since that
        checkpoint can be asked for by `PulledDisk.context`.  *freeze*: as in `run`.
        *listen*: by TCP as well, "host:port" (port 0: one that is free, see `Pull.address`),
        and never in clear: *tls* is a folder of `ca-cert.pem`, `server-cert.pem` and
        `server-key.pem`, and a client, on the socket too, has to have a certificate of
        that authority (`tls-creds-x509`).

        Nothing else can be changed in the machine's disks within.  The block is cancelled
        and JobFailed raised when *folder* is full: then the moment is lost, not the guest.
        A client that leaves unread for a minute what it has asked for loses its connection.
        Raises SpecInvalid (also for disks with an iothread on QEMU before 9.0, which would
        abort), ImageFailed, ImageInUse, and CommandRefused when QEMU's NBD server is in
        other hands.
        """
        freezing = self._freeze if freeze else None
        where = Path(folder)
        return pulling(
            self._machine,
            where,
            since=since,
            checkpoint=checkpoint,
            freeze=freezing,
            listen=listen,
            tls=tls,
        )

    async def drop_checkpoint(self, name: str) -> None:
        """Forget a checkpoint of `pulling`; none of that name is fine."""
        await drop_checkpoint(self._machine, name)

    async def forget(self) -> None:
        """Remove the dirty bitmaps of all backups and checkpoints from the machine's images.

        The next backup into any folder copies everything.
        """
        async with self._machine.changing:
            await remove_bitmaps(self._machine, "")
