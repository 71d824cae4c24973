"""Disks: what the guest sees (a device), and the two block nodes behind it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.addresses import Place
from qmpkit.spec.encryption import (
    BaseImage,
    Luks,
    backing_of,
    encryption_of,
    luks_faults,
    to_luks,
)
from qmpkit.spec.given import items_of
from qmpkit.spec.limits import IoLimits, limits_faults
from qmpkit.spec.names import (
    file_node,
    format_node,
    id_problem,
    iothread_id,
    node_problem,
    secret_id,
)
from qmpkit.spec.options import Json
from qmpkit.spec.sizes import Size, format_size, to_bytes

__all__ = [
    "Aio",
    "BaseFormat",
    "Cache",
    "Disk",
    "DiskFormat",
    "DiskInterface",
    "Overlay",
    "WriteError",
    "blockdevs_of",
    "device_of",
    "disk_faults",
    "disk_node",
    "iothread_object",
    "iothreads_of",
    "on_root_port",
    "threads_of",
    "to_disks",
]

DiskFormat = Literal["raw", "qcow2", "luks"]
BaseFormat = Literal["raw", "qcow2", "qed", "vmdk", "vdi", "vhdx", "vpc", "luks"]
DiskInterface = Literal["virtio-blk", "virtio-scsi", "nvme", "usb", "cdrom", "scsi-cdrom"]
Cache = Literal["writeback", "none", "writethrough", "directsync", "unsafe"]
Aio = Literal["threads", "native", "io_uring", "auto"]
WriteError = Literal["stop", "enospc", "report"]

_DIRECT = ("none", "directsync")
_SYNCHRONOUS = ("writethrough", "directsync")
ON_CONTROLLERS = ("virtio-scsi", "scsi-cdrom", "usb")
_QUEUE_LIMIT = 256
_CDROMS = ("cdrom", "scsi-cdrom")
_STOPPING = ("virtio-blk", "virtio-scsi")  # whose guest can be stopped by a failed write
_SERIAL_LIMIT = {"virtio-blk": 20, "nvme": 20, "cdrom": 20}
_LONG_SERIAL = 36


def _path(value: str | os.PathLike[str]) -> str:
    return os.fspath(value)


@attrs.frozen
class Overlay:
    """An image to be made as a qcow2 overlay of `file`, whose `format` is always stated.

    The base is only read, so it may be in a format that qmpkit gives no machine to write to.
    """

    file: str = attrs.field(converter=_path)
    format: BaseFormat = attrs.field(kw_only=True)


def _iothreads(value: Iterable[str]) -> tuple[str, ...]:
    return items_of(value, "iothreads", '["io0", "io1"]', (str,))


def _make(value: str | int | Overlay | None) -> Size | Overlay | None:
    return value if value is None or isinstance(value, Overlay) else to_bytes(value, "make")


@attrs.frozen
class Disk:
    """A drive of the guest.

    `file`, `format`: the image; a CD drive without a file is empty. `make`: what to create
    at start when it is missing, a size ("10GiB") or an `Overlay`; None means that it must
    exist. `interface`: what the guest sees; "cdrom" is SATA (Debian's cloud kernels have no
    driver for it), "scsi-cdrom" needs virtio-scsi in the guest.
    `cache`: "none" bypasses the host's page cache, "writethrough" and "directsync"
    make every write durable, "unsafe" ignores flushes. `aio`: "native" needs
    "none" or "directsync"; "auto" is the fastest that works on the host.
    `discard`: pass the guest's trims on to the file.
    `iothread`: the name of a thread of its own, shared by disks that say the same
    (virtio-blk, virtio-scsi). `iothreads`: several, among which the queues of a
    virtio-blk disk are divided (QEMU 9.0). `queues`: how many of them (virtio-blk; default: one
    for each vCPU). `boot`: place in the boot order, the lowest first.
    `driver`: "host_device" for a block device of the host. `id` is filled in from
    the place in the list (`disk0`); `node` names the block node (`qk-disk0`).
    `bus`: the root port to sit in, chosen when left out; of "virtio-scsi", "scsi-cdrom" and
    "usb", `controller` and `unit`, the id of a controller and the number there. `limits`:
    what the guest may read and write each second. `origin`: the file that its owner wrote
    here, when a snapshot, a merge or a move has put another in its place since.
    `werror` (virtio-blk, virtio-scsi): what a write does that the host fails: "stop" the guest,
    which tries it again when it is resumed, "report" it to the guest, or "enospc": stop it
    when it is for lack of space.  A backup whose target breaks lets such writes fail.
    `luks`: the image is encrypted; the file with its secret, or a `Luks`.
    """

    file: str = attrs.field(default="", converter=_path)
    format: DiskFormat = attrs.field(kw_only=True)
    make: Size | Overlay | None = attrs.field(default=None, converter=_make, kw_only=True)
    interface: DiskInterface = attrs.field(default="virtio-blk", kw_only=True)
    cache: Cache = attrs.field(default="writeback", kw_only=True)
    aio: Aio = attrs.field(default="threads", kw_only=True)
    discard: bool = attrs.field(default=True, kw_only=True)
    detect_zeroes: Literal["off", "on", "unmap"] = attrs.field(default="off", kw_only=True)
    readonly: bool = attrs.field(default=False, kw_only=True)
    iothread: str | None = attrs.field(default=None, kw_only=True)
    iothreads: tuple[str, ...] = attrs.field(default=(), converter=_iothreads, kw_only=True)
    queues: int | None = attrs.field(default=None, kw_only=True)
    serial: str | None = attrs.field(default=None, kw_only=True)
    boot: int | None = attrs.field(default=None, kw_only=True)
    driver: Literal["file", "host_device"] = attrs.field(default="file", kw_only=True)
    werror: WriteError = attrs.field(default="stop", kw_only=True)
    id: str = attrs.field(default="", kw_only=True)
    node: str | None = attrs.field(default=None, kw_only=True)
    bus: str | None = attrs.field(default=None, kw_only=True)
    controller: str | None = attrs.field(default=None, kw_only=True)
    unit: int | None = attrs.field(default=None, kw_only=True)
    limits: IoLimits | None = attrs.field(default=None, kw_only=True)
    origin: str | None = attrs.field(default=None, kw_only=True)
    luks: Luks | None = attrs.field(default=None, converter=to_luks, kw_only=True)

    @property
    def is_cdrom(self) -> bool:
        """Whether the guest sees a CD drive, which is never written."""
        return self.interface in _CDROMS

    @property
    def is_empty(self) -> bool:
        """Whether it is a CD drive with nothing in it."""
        return self.is_cdrom and not self.file

    @property
    def is_readonly(self) -> bool:
        """Whether QEMU opens the image for reading only."""
        return self.readonly or self.is_cdrom


def to_disks(value: Iterable[Disk]) -> tuple[Disk, ...]:
    """Fill in missing ids: `disk0`, `disk1` … by place in the list, skipping those in use."""
    disks = items_of(value, "disks", 'Disk("a.qcow2", format="qcow2")', (Disk,))
    used = {disk.id for disk in disks}
    named: list[Disk] = []
    for number, disk in enumerate(disks):
        while not disk.id:
            if (name := f"disk{number}") not in used:
                used.add(name)
                disk = attrs.evolve(disk, id=name)
            number += 1
        named.append(disk)
    return tuple(named)


def disk_node(disk: Disk) -> str:
    """The name of the node the device is attached to."""
    return disk.node or format_node(disk.id)


def on_root_port(disk: Disk) -> bool:
    """Whether the disk is a PCI function of its own."""
    return disk.interface in ("virtio-blk", "nvme")


def blockdevs_of(
    disk: Disk, lower_node: str | None = None, bases: Sequence[BaseImage] = ()
) -> tuple[Json, Json]:
    """The arguments of `-blockdev` (and `blockdev-add`), the lower node first.

    *lower_node*: its name, when that of the disk is taken by a layer that is there already.
    *bases*: those of an encrypted disk, for which it may have to be told secrets.
    """
    lower_node = lower_node or file_node(disk.id)
    shared: dict[str, object] = {
        "read-only": disk.is_readonly,
        "discard": "unmap" if disk.discard else "ignore",
        "cache": {"direct": disk.cache in _DIRECT, "no-flush": disk.cache == "unsafe"},
    }
    lower = {
        "driver": disk.driver,
        "node-name": lower_node,
        "filename": disk.file,
        # "auto" is decided on at a start; who opens an image without one is not in a hurry.
        "aio": "threads" if disk.aio == "auto" else disk.aio,
        **shared,
    }
    upper = {
        "driver": disk.format,
        "node-name": disk_node(disk),
        "file": lower_node,
        **shared,
    }
    if disk.luks is not None:
        upper |= encryption_of(disk.format, secret_id(disk.id, 0))
        upper |= backing_of(disk.id, bases)
    if disk.detect_zeroes != "off":
        upper["detect-zeroes"] = disk.detect_zeroes
    return lower, upper


def device_of(disk: Disk, place: Place, unit: int = 0) -> Json:
    """The argument of `-device` (and `device_add`); `unit` is the number on a SCSI bus."""
    device: dict[str, object] = {
        "driver": _driver(disk, place),
        "id": disk.id,
        **place.properties(),
    }
    if not disk.is_empty:
        device["drive"] = disk_node(disk)
    if disk.interface in ("virtio-scsi", "scsi-cdrom"):
        device |= {"scsi-id": unit, "lun": 0}
    elif disk.interface == "usb":
        device["port"] = str(unit + 1)
    if disk.iothread is not None and disk.interface == "virtio-blk":
        device["iothread"] = iothread_id(disk.iothread)
    if disk.iothreads:
        names = map(iothread_id, disk.iothreads)
        device["iothread-vq-mapping"] = [{"iothread": name} for name in names]
    if disk.queues is not None:
        device["num-queues"] = disk.queues
    if not disk.is_cdrom:
        # For a node given by name the write cache is the device's, not -blockdev's.
        device["write-cache"] = "off" if disk.cache in _SYNCHRONOUS else "on"
    if disk.interface in _STOPPING:
        device["werror"] = disk.werror
    if disk.serial is not None or disk.interface == "nvme":
        device["serial"] = disk.serial or disk.id
    if disk.boot is not None:
        device["bootindex"] = disk.boot
    return device


def _driver(disk: Disk, place: Place) -> str:
    plain = {
        "virtio-scsi": "scsi-hd",
        "nvme": "nvme",
        "usb": "usb-storage",
        "cdrom": "ide-cd",
        "scsi-cdrom": "scsi-cd",
    }
    return plain.get(disk.interface) or place.virtio("blk")


def iothreads_of(disks: Iterable[Disk]) -> list[str]:
    """The names of the threads that *disks* have, each once, in order."""
    return list(dict.fromkeys(name for disk in disks for name in threads_of(disk)))


def threads_of(disk: Disk) -> tuple[str, ...]:
    """The names of one disk's threads."""
    return disk.iothreads or (() if disk.iothread is None else (disk.iothread,))


def iothread_object(name: str) -> Json:
    """The `-object` of a disk's thread."""
    return {"qom-type": "iothread", "id": iothread_id(name)}


def disk_faults(disk: Disk, where: str) -> Iterator[Fault]:
    """Everything that contradicts itself in one disk."""
    if problem := id_problem(disk.id):
        yield Fault(f"{where}.id", problem)
    if disk.node is not None and (problem := node_problem(disk.node)):
        yield Fault(f"{where}.node", problem)
    if disk.iothread is not None:
        if problem := id_problem(disk.iothread):
            yield Fault(f"{where}.iothread", problem)
        elif disk.interface not in ("virtio-blk", "virtio-scsi", "scsi-cdrom"):
            yield Fault(f"{where}.iothread", f"{disk.interface} cannot use an iothread")
    yield from _queue_faults(disk, where)
    if not disk.file and not disk.is_cdrom:
        yield Fault(f"{where}.file", "the path is empty", "only a CD drive can be empty")
    if disk.aio == "native" and disk.cache not in _DIRECT:
        hint = 'cache = "none" or "directsync"'
        yield Fault(f"{where}.aio", f"native does not work with cache {disk.cache!r}", hint)
    if disk.detect_zeroes == "unmap" and not disk.discard:
        yield Fault(f"{where}.detect_zeroes", "unmap needs discard = true")
    if disk.werror != "stop" and disk.interface not in _STOPPING:
        yield Fault(f"{where}.werror", f"{disk.interface} has no such choice", "leave it out")
    if disk.boot is not None and disk.boot < 0:
        yield Fault(f"{where}.boot", f"counts from 0, not from {disk.boot}")
    if disk.bus is not None and not on_root_port(disk):
        yield Fault(f"{where}.bus", f"{disk.interface} does not sit in a root port")
    if disk.limits is not None:
        yield from limits_faults(disk.limits, f"{where}.limits")
    yield from luks_faults(disk.luks, disk.format, where)
    if disk.interface not in ON_CONTROLLERS:
        for name in ("controller", "unit"):
            if getattr(disk, name) is not None:
                yield Fault(f"{where}.{name}", f"{disk.interface} sits on no controller")
    yield from _serial_faults(disk, where)
    yield from _make_faults(disk, where)


def _queue_faults(disk: Disk, where: str) -> Iterator[Fault]:
    if disk.iothreads:
        if disk.iothread is not None:
            yield Fault(f"{where}.iothreads", "it has either iothread or iothreads")
        if disk.interface != "virtio-blk":
            yield Fault(f"{where}.iothreads", f"{disk.interface} cannot use several")
        if len(set(disk.iothreads)) < len(disk.iothreads):
            yield Fault(f"{where}.iothreads", "the same thread is named twice")
        for number, name in enumerate(disk.iothreads):
            if problem := id_problem(name):
                yield Fault(f"{where}.iothreads[{number}]", problem)
    if disk.queues is None:
        return
    if disk.interface != "virtio-blk":
        yield Fault(f"{where}.queues", f"{disk.interface} has no queues to be counted")
    elif not max(1, len(disk.iothreads)) <= disk.queues <= _QUEUE_LIMIT:
        message = f"must be from {max(1, len(disk.iothreads))} to {_QUEUE_LIMIT}"
        yield Fault(f"{where}.queues", f"{message}, not {disk.queues}")


def _serial_faults(disk: Disk, where: str) -> Iterator[Fault]:
    if disk.serial is None:
        return
    limit = _SERIAL_LIMIT.get(disk.interface, _LONG_SERIAL)
    if not disk.serial or not (disk.serial.isascii() and disk.serial.isprintable()):
        yield Fault(f"{where}.serial", f"{disk.serial!r} is not printable ASCII")
    elif len(disk.serial) > limit:
        message = f"{disk.serial!r} is longer than the {limit} characters of {disk.interface}"
        yield Fault(f"{where}.serial", message)


def _make_faults(disk: Disk, where: str) -> Iterator[Fault]:
    if disk.make is None:
        return
    if disk.is_readonly:
        yield Fault(f"{where}.make", "an image that is only read cannot be made empty")
    elif disk.driver != "file":
        yield Fault(f"{where}.make", "a block device of the host cannot be made")
    elif isinstance(disk.make, Overlay):
        if disk.format != "qcow2":
            yield Fault(f"{where}.format", f"an overlay is qcow2, not {disk.format}")
        if not disk.make.file:
            yield Fault(f"{where}.make.file", "the path is empty")
        elif disk.make.file == disk.file:
            yield Fault(f"{where}.make.file", "an image cannot be an overlay of itself")
    elif disk.make < 512 or disk.make % 512:
        message = f"{format_size(disk.make)} is not a whole number of 512-byte sectors"
        yield Fault(f"{where}.make", message)
