"""What devices need of the host: vhost-vsock, a USB device, a free PCI device.  Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qmpkit.errors import BinaryMissing, Fault, HostLacks
from qmpkit.host.findings import Problem, lacking
from qmpkit.host.virtiofsd import find_virtiofsd
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.peripherals import Rng, Share, UsbHost, Vfio, Vsock

__all__ = ["check_devices", "vsock_lacking"]


def check_devices(spec: MachineSpec, root: Path = Path("/")) -> Iterator[Problem]:
    """Every device's needs."""
    for number, device in enumerate(spec.devices):
        where = f"devices[{number}]"
        match device:
            case Rng():
                if not os.access(device.file, os.R_OK, effective_ids=True):
                    yield Problem(Fault(f"{where}.file", f"{device.file!r} cannot be read"))
            case Vsock():
                yield from vsock_lacking(where, root)
            case UsbHost():
                yield from _check_usb(device, where, root)
            case Share() if device.served:
                yield from _check_share(device, where, root)
            case Share():
                if not Path(device.socket).is_socket():
                    message = f"there is no socket {device.socket!r}"
                    hint = f"start virtiofsd --socket-path={device.socket} first"
                    yield Problem(Fault(f"{where}.socket", message, hint))
            case Vfio():
                yield from _check_vfio(device, where, root)


def vsock_lacking(where: str, root: Path) -> Iterator[Problem]:
    """That the host has no vhost-vsock: QEMU 7.2 aborts then."""
    if not (root / "dev/vhost-vsock").exists():
        what = "/dev/vhost-vsock does not exist, a vsock device needs it"
        cure = "sudo modprobe vhost_vsock; in a container, pass the device in"
        yield lacking(where, HostLacks(what, cure))


def _check_share(device: Share, where: str, root: Path) -> Iterator[Problem]:
    try:
        if not stat.S_ISDIR(os.stat(device.path).st_mode):  # noqa: PTH116
            yield Problem(Fault(f"{where}.path", f"{device.path!r} is no directory"))
    except OSError as error:
        message = f"{device.path!r} cannot be shared: {error.strerror}"
        yield Problem(Fault(f"{where}.path", message, f"mkdir -p {device.path}"))
    try:
        find_virtiofsd(root)
    except BinaryMissing as missing:
        yield lacking(where, missing)


def _check_usb(device: UsbHost, where: str, root: Path) -> Iterator[Problem]:
    node = root / f"dev/bus/usb/{device.hostbus:03}/{device.hostaddr:03}"
    if not node.exists():
        message = f"there is no USB device {device.hostaddr} on bus {device.hostbus}"
        yield Problem(Fault(where, message, "lsusb lists them"))
    elif not os.access(node, os.R_OK | os.W_OK, effective_ids=True):
        cure = f"sudo setfacl -m u:$USER:rw {node}"
        yield lacking(where, HostLacks(f"{node} may not be opened", cure))


def _check_vfio(device: Vfio, where: str, root: Path) -> Iterator[Problem]:
    """The device, its IOMMU group, and that all of that is bound to vfio-pci."""
    place = root / "sys/bus/pci/devices" / device.host
    if not place.is_dir():
        message = f"there is no PCI device {device.host}"
        yield Problem(Fault(f"{where}.host", message, "lspci -D lists them"))
        return
    group = place / "iommu_group"
    if not group.exists():
        what = f"PCI device {device.host} is in no IOMMU group: the IOMMU is off"
        yield lacking(where, HostLacks(what, "intel_iommu=on or amd_iommu=on on the host's kernel"))
        return
    for member in sorted((group / "devices").iterdir()):
        if (driver := _driver(member)) != "vfio-pci" and not _is_bridge(member):
            how = f"is bound to {driver}" if driver else "has no driver"
            what = f"{member.name}, of the IOMMU group of {device.host}, {how}, not to vfio-pci"
            cure = f"sudo driverctl set-override {member.name} vfio-pci"
            yield lacking(where, HostLacks(what, cure))
    node = root / "dev/vfio" / group.resolve().name
    if not os.access(node, os.R_OK | os.W_OK, effective_ids=True):
        yield lacking(where, HostLacks(f"{node} may not be opened", f"sudo chown $USER {node}"))


def _driver(member: Path) -> str:
    link = member / "driver"
    return link.resolve().name if link.exists() else ""


def _is_bridge(member: Path) -> bool:
    """A bridge needs no driver to be safe: the kernel leaves it where it is."""
    try:
        return (member / "class").read_text().startswith("0x0604")
    except OSError:
        return False
