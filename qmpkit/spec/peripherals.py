"""Devices beside disks and NICs: each is a value, at a start and when it is plugged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.addresses import Place
from qmpkit.spec.chardev import NamedEndpoint
from qmpkit.spec.given import items_of
from qmpkit.spec.names import chardev_id, id_problem, iothread_id, module_id
from qmpkit.spec.options import Json
from qmpkit.spec.sizes import MIB, Size, format_size, to_bytes

__all__ = [
    "DEVICE_KINDS",
    "Device",
    "Rng",
    "ScsiController",
    "Share",
    "UsbController",
    "UsbHost",
    "UsbKeyboard",
    "UsbTablet",
    "Vfio",
    "VirtioMem",
    "Vsock",
    "Controller",
    "PciDevice",
    "UsbDevice",
    "device_chardev",
    "device_faults",
    "device_object",
    "evolved",
    "peripheral_device",
    "to_devices",
]

_Item = TypeVar("_Item")
_PCI_HOST = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]", re.ASCII)
_TAG_LIMIT = 36  # bytes, of virtio-fs


def _path(value: str | os.PathLike[str]) -> str:
    return os.fspath(value)


@attrs.frozen(kw_only=True)
class _Device:
    """What every device has: `id`, filled in when left out; `bus`: the root port to sit in."""

    prefix: ClassVar[tuple[str, int]] = ("device", 0)
    id: str = ""
    bus: str | None = None


@attrs.frozen(kw_only=True)
class _UsbDevice:
    """What every USB device has: `controller`, an id (default `usb0`), and `unit`, its port."""

    prefix: ClassVar[tuple[str, int]] = ("usbdev", 0)
    id: str = ""
    controller: str | None = None
    unit: int | None = None


@attrs.frozen(kw_only=True)
class Rng(_Device):
    """A source of randomness: `file` is read, at most `max_bytes` each `period` milliseconds."""

    prefix: ClassVar[tuple[str, int]] = ("rng", 1)
    file: str = attrs.field(default="/dev/urandom", converter=_path)
    max_bytes: int | None = None
    period: int = 1000


@attrs.frozen(kw_only=True)
class Vsock(_Device):
    """A socket between host and guest, by the guest's `cid`; needs /dev/vhost-vsock."""

    prefix: ClassVar[tuple[str, int]] = ("vsock", 1)
    cid: int


@attrs.frozen(kw_only=True)
class ScsiController(_Device):
    """A virtio-scsi controller, for disks that name it in `controller`, or have its `iothread`."""

    prefix: ClassVar[tuple[str, int]] = ("scsi", 4)
    iothread: str | None = None


@attrs.frozen(kw_only=True)
class UsbController(_Device):
    """A USB 3 controller (qemu-xhci) with `ports`, 1 to 15."""

    prefix: ClassVar[tuple[str, int]] = ("usb", 1)
    ports: int = 8


@attrs.frozen(kw_only=True)
class UsbTablet(_UsbDevice):
    """A pointer that says where it is, as screens with a mouse of their own want it."""

    prefix: ClassVar[tuple[str, int]] = ("tablet", 0)


@attrs.frozen(kw_only=True)
class UsbKeyboard(_UsbDevice):
    """A keyboard."""

    prefix: ClassVar[tuple[str, int]] = ("usbkbd", 0)


@attrs.frozen(kw_only=True)
class UsbHost(_UsbDevice):
    """A USB device of the host, by its numbers in `lsusb`: Bus `hostbus`, Device `hostaddr`."""

    prefix: ClassVar[tuple[str, int]] = ("usbhost", 0)
    hostbus: int
    hostaddr: int


@attrs.frozen(kw_only=True)
class Share(_Device):
    """A directory of the host that the guest mounts: `mount -t virtiofs <tag> /mnt`.

    `path`: that directory, for which a virtiofsd of the machine's own is started, which ends
    with the device; with `read_only` the guest cannot change it.  Or `socket`: where a
    virtiofsd listens that somebody else has started, and that runs as long as the machine.
    Needs shared memory (`memory.share`).
    """

    prefix: ClassVar[tuple[str, int]] = ("fs", 0)
    tag: str
    path: str = attrs.field(default="", converter=_path)
    read_only: bool = False
    socket: str = attrs.field(default="", converter=_path)
    queue_size: int = 1024

    @property
    def served(self) -> bool:
        """Whether its virtiofsd is the machine's own."""
        return not self.socket


@attrs.frozen(kw_only=True)
class Vfio(_Device):
    """A PCI device of the host that is the guest's alone: `host` is its address, "0000:01:00.0".

    Its IOMMU group must be bound to vfio-pci as a whole.
    """

    prefix: ClassVar[tuple[str, int]] = ("vfio", 0)
    host: str


def _bytes(value: str | int) -> Size:
    return to_bytes(value, "devices")


@attrs.frozen(kw_only=True)
class VirtioMem(_Device):
    """Memory that grows and shrinks while the guest runs, from none to `size` ("4GiB").

    `requested`: what of it the guest is to use, in steps of `block`; `vm.memory.resize` changes
    it.  Lies between `memory.size` and `maxmem`.  `node`: of the guest's NUMA nodes (default:
    0).  `address`: where it lies in the guest's memory, written by hotplug.
    """

    prefix: ClassVar[tuple[str, int]] = ("vmem", 0)
    size: Size = attrs.field(converter=_bytes)
    requested: Size = attrs.field(default=Size(0), converter=_bytes)
    block: Size = attrs.field(default=Size(2 * MIB), converter=_bytes)
    node: int | None = None
    address: int | None = None


UsbDevice = UsbTablet | UsbKeyboard | UsbHost
"""What sits on a USB controller; all else on PCI, and rng, vsock and SCSI on a microvm's bus."""

Controller = ScsiController | UsbController
PciDevice = Rng | Vsock | Controller | Share | Vfio | VirtioMem
Device = PciDevice | UsbDevice
DEVICE_KINDS: dict[str, type[Device]] = {
    "rng": Rng,
    "vsock": Vsock,
    "virtio-scsi": ScsiController,
    "usb": UsbController,
    "usb-tablet": UsbTablet,
    "usb-kbd": UsbKeyboard,
    "usb-host": UsbHost,
    "virtiofs": Share,
    "vfio": Vfio,
    "virtio-mem": VirtioMem,
}


def evolved(item: _Item, **changes: object) -> _Item:
    """`attrs.evolve` of a value that may be one of many classes, which all have these fields."""
    evolve: Any = attrs.evolve
    result: _Item = evolve(item, **changes)
    return result


def to_devices(value: Iterable[Device]) -> tuple[Device, ...]:
    """Fill in missing ids, by the kind: `rng1`, `usb1`, `tablet0` …, skipping those in use."""
    devices = items_of(value, "devices", "Rng()", tuple(DEVICE_KINDS.values()))
    used = {device.id for device in devices}
    named: list[Device] = []
    for device in devices:
        if not device.id:
            prefix, number = device.prefix
            while f"{prefix}{number}" in used:
                number += 1
            device = attrs.evolve(device, id=f"{prefix}{number}")
            used.add(device.id)
        named.append(device)
    return tuple(named)


def device_object(device: Device) -> Json | None:
    """The argument of `-object` (and `object-add`) of what is behind a device, if there is any."""
    if not isinstance(device, Rng):
        return None
    return {"qom-type": "rng-random", "id": chardev_id(device.id), "filename": device.file}


def device_chardev(device: Share, cable: NamedEndpoint | None = None) -> Json | None:
    """The argument of `chardev-add` of what is behind a device; None of one without its *cable*.

    *cable*: the socket, handed over, that leads to the machine's own virtiofsd.
    """
    if not device.served:
        address = {"type": "unix", "data": {"path": device.socket}}
    elif cable is not None:
        address = {"type": "fd", "data": {"str": cable.name}}
    else:
        return None
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    return {"id": chardev_id(device.id), "backend": backend}


def peripheral_device(device: Device, place: Place, unit: int = 0) -> Json:
    """The argument of `-device` (and `device_add`); *unit*: its number on the controller."""
    head = {"id": device.id, **place.properties()}
    match device:
        case Rng():
            more: dict[str, object] = {"rng": chardev_id(device.id)}
            if device.max_bytes is not None:
                more |= {"max-bytes": device.max_bytes, "period": device.period}
            return {"driver": place.virtio("rng"), **head, **more}
        case Vsock():
            driver = place.virtio("vsock").replace("virtio", "vhost")
            return {"driver": driver, **head, "guest-cid": device.cid}
        case ScsiController():
            thread = device.iothread
            more = {} if thread is None else {"iothread": iothread_id(thread)}
            return {"driver": place.virtio("scsi"), **head, **more}
        case UsbController():
            return {"driver": "qemu-xhci", **head, "p2": device.ports, "p3": device.ports}
        case Share():
            more = {"chardev": chardev_id(device.id), "tag": device.tag}
            return {"driver": "vhost-user-fs-pci", **head, **more, "queue-size": device.queue_size}
        case Vfio():
            return {"driver": "vfio-pci", **head, "host": device.host}
        case VirtioMem():
            return {"driver": place.virtio("mem"), **head, **_virtio_mem(device)}
    return {**_usb(device), **head, "port": str(unit + 1)}


def _virtio_mem(device: VirtioMem) -> dict[str, object]:
    wanted = {"requested-size": int(device.requested), "block-size": int(device.block)}
    places = {"node": device.node, "memaddr": device.address}
    there = {name: value for name, value in places.items() if value is not None}
    return {"memdev": module_id(device.id), **wanted, **there}


def _usb(device: UsbDevice) -> Json:
    match device:
        case UsbTablet():
            return {"driver": "usb-tablet"}
        case UsbKeyboard():
            return {"driver": "usb-kbd"}
    numbers = {"hostbus": device.hostbus, "hostaddr": device.hostaddr}
    return {"driver": "usb-host", **numbers}


def device_faults(device: Device, where: str) -> Iterator[Fault]:
    """Everything that contradicts itself in one device."""
    if problem := id_problem(device.id):
        yield Fault(f"{where}.id", problem)
    match device:
        case Rng():
            if not device.file:
                yield Fault(f"{where}.file", "the path is empty")
            if device.max_bytes is not None and device.max_bytes < 1:
                yield Fault(f"{where}.max_bytes", f"must be at least 1, not {device.max_bytes}")
            if device.period < 1:
                yield Fault(f"{where}.period", f"must be at least 1, not {device.period}")
        case Vsock():
            if not 3 <= device.cid < 2**32 - 1:
                message = f"a guest's CID is from 3 to 4294967294, not {device.cid}"
                yield Fault(f"{where}.cid", message)
        case UsbController():
            if not 1 <= device.ports <= 15:
                yield Fault(f"{where}.ports", f"must be from 1 to 15, not {device.ports}")
        case UsbHost():
            for name, value in (("hostbus", device.hostbus), ("hostaddr", device.hostaddr)):
                if not 1 <= value <= 255:
                    yield Fault(f"{where}.{name}", f"must be from 1 to 255, not {value}")
        case Share():
            if len(device.tag.encode()) not in range(1, _TAG_LIMIT + 1):
                yield Fault(f"{where}.tag", f"a tag has 1 to {_TAG_LIMIT} bytes")
            if bool(device.path) == bool(device.socket):
                message = "a share has a directory of its own to serve, or a virtiofsd's socket"
                yield Fault(where, message, 'path = "/srv/work"')
            if device.read_only and not device.path:
                message = "is for whoever has started its virtiofsd to say"
                yield Fault(f"{where}.read_only", message)
        case VirtioMem():
            yield from _virtio_mem_faults(device, where)
        case Vfio():
            if not _PCI_HOST.fullmatch(device.host):
                message = f"{device.host!r} is not the address of a PCI device"
                yield Fault(f"{where}.host", message, "0000:01:00.0")


def _virtio_mem_faults(device: VirtioMem, where: str) -> Iterator[Fault]:
    block = device.block
    if block < MIB or block & (block - 1):
        yield Fault(f"{where}.block", f"{format_size(block)} is no power of two from 1MiB on")
        return
    for name in ("size", "requested"):
        if (value := getattr(device, name)) % block:
            message = (
                f"{format_size(value)} is not a whole number of blocks of {format_size(block)}"
            )
            yield Fault(f"{where}.{name}", message)
    if not device.size:
        yield Fault(f"{where}.size", "there is nothing that the guest could have")
    elif device.requested > device.size:
        yield Fault(f"{where}.requested", f"is more than the size, {format_size(device.size)}")
