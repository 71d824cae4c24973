"""What devices need of a host, on made-up trees of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit import MachineSpec, Share, UsbHost, Vfio, Vsock
from qmpkit.host.check_devices import check_devices

HOST = "0000:01:00.0"


def told(root: Path, *devices: object) -> list[str]:
    spec = MachineSpec(devices=devices)  # type: ignore[arg-type]
    return [problem.fault.message for problem in check_devices(spec, root)]


def pci(root: Path, host: str, *, group: str | None = None, driver: str = "", kind: str) -> None:
    place = root / "sys/bus/pci/devices" / host
    place.mkdir(parents=True)
    (place / "class").write_text(f"{kind}\n")
    if driver:
        home = root / "sys/bus/pci/drivers" / driver
        home.mkdir(parents=True, exist_ok=True)
        (place / "driver").symlink_to(home)
    if group is not None:
        members = root / "sys/kernel/iommu_groups" / group / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / host).symlink_to(place)
        (place / "iommu_group").symlink_to(members.parent)


def test_vsock(tmp_path: Path) -> None:
    assert "vhost-vsock does not exist" in told(tmp_path, Vsock(cid=3))[0]
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vhost-vsock").touch()
    assert told(tmp_path, Vsock(cid=3)) == []


def test_a_usb_device(tmp_path: Path) -> None:
    device = UsbHost(hostbus=1, hostaddr=4)
    assert told(tmp_path, device) == ["there is no USB device 4 on bus 1"]
    node = tmp_path / "dev/bus/usb/001/004"
    node.parent.mkdir(parents=True)
    node.touch()
    assert told(tmp_path, device) == []


def test_a_share_without_its_daemon(tmp_path: Path) -> None:
    (message,) = told(tmp_path, Share(tag="t", socket=str(tmp_path / "s")))
    assert message.startswith("there is no socket")


@pytest.mark.parametrize(
    ("group", "driver", "other", "why"),
    [
        (None, "vfio-pci", "vfio-pci", "in no IOMMU group: the IOMMU is off"),
        ("7", "nvme", "vfio-pci", "is bound to nvme, not to vfio-pci"),
        ("7", "vfio-pci", "snd", f"0000:01:00.1, of the IOMMU group of {HOST}, is bound to snd"),
        ("7", "vfio-pci", "", "0000:01:00.1, of the IOMMU group of 0000:01:00.0, has no driver"),
    ],
)
def test_a_pci_device_that_is_not_free(
    tmp_path: Path, group: str | None, driver: str, other: str, why: str
) -> None:
    pci(tmp_path, HOST, group=group, driver=driver, kind="0x010802")
    pci(tmp_path, "0000:01:00.1", group=group, driver=other, kind="0x040300")
    pci(tmp_path, "0000:00:01.0", group=group, driver="pcieport", kind="0x060400")
    node = tmp_path / "dev/vfio/7"
    node.parent.mkdir(parents=True)
    node.touch()
    (message,) = told(tmp_path, Vfio(host=HOST))
    assert why in message


def test_a_pci_device_that_is_free(tmp_path: Path) -> None:
    assert told(tmp_path, Vfio(host=HOST)) == [f"there is no PCI device {HOST}"]
    pci(tmp_path, HOST, group="7", driver="vfio-pci", kind="0x010802")
    assert "dev/vfio/7 may not be opened" in told(tmp_path, Vfio(host=HOST))[0]
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/7").touch()
    assert told(tmp_path, Vfio(host=HOST)) == []
