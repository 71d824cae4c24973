"""The test guests themselves, on each QEMU: without them no other live test means anything."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, MachineSpec
from qmpkit.spec.machine import Accel
from qmpkit.spec.network import UserNic
from qmpkit.testing import guests
from qmpkit.testing.guests import copies, store
from tests.live.counting import counted
from tests.sizes import BOOTED_COPIES, NEWEST

pytestmark = pytest.mark.live


def profile(name: str, qemu: str) -> MachineSpec:
    return attrs.evolve(qmpkit.load_profile(name), qemu=qemu, accel="tcg")


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    guests.build_tiny()
    guests.build_kvm_tiny()


@pytest.mark.parametrize("name", ["tiny", "tiny-microvm", "tiny-vga"])
async def test_tiny_boots_to_its_shell_and_its_agent(qemu: str, name: str) -> None:
    async with qmpkit.running(profile(name, qemu)) as vm:
        await vm.console.expect(guests.TINY_READY)
        await vm.console.expect(guests.PROMPT)
        await vm.console.send_line("echo $((6 * 7))-from-$(hostname)")
        await vm.console.expect("42-from-tiny")
        await vm.agent.wait_ready()
        done = await vm.agent.run(["uname", "-sm"])
        assert done.text == "Linux x86_64\n"


@pytest.mark.qemus(*NEWEST)
async def test_tiny_has_a_driver_for_every_device(qemu: str, tmp_path: Path) -> None:
    interfaces = ("virtio-blk", "virtio-scsi", "nvme", "scsi-cdrom")
    disks = [_disk(tmp_path, interface) for interface in interfaces]
    spec = attrs.evolve(profile("tiny", qemu), disks=disks, nics=[UserNic()], balloon=True)
    async with qmpkit.running(spec) as vm:
        await vm.console.expect(guests.PROMPT)
        for name in ("vda", "sda", "nvme0n1", "sr0"):  # SCSI is scanned in the background
            await _until(vm, f"[ -b /dev/{name} ]")
        await _until(vm, "ip -4 addr show eth0 | grep -q 'inet 10.0.2.15/24'")
        await vm.agent.wait_ready()
        modules = await vm.agent.run(["cat", "/proc/modules"])
        assert {"virtio_balloon", "virtio_rng"} <= {
            line.split()[0] for line in modules.text.splitlines()
        }


async def _until(vm: qmpkit.VM, condition: str) -> None:
    """Wait in the guest's shell; the test's bound ends a wait in vain."""
    await vm.console.send_line(f"until {condition}; do usleep 20000; done; echo tr''ue")
    await vm.console.expect("true")


def _disk(folder: Path, interface: str) -> Disk:
    file = folder / f"{interface}.img"
    file.write_bytes(bytes(1 << 20))
    readonly = interface.endswith("cdrom")
    return Disk(file, format="raw", interface=interface, readonly=readonly)  # type: ignore[arg-type]


async def test_tiny_takes_a_disk_that_is_plugged_later(qemu: str, tmp_path: Path) -> None:
    file = tmp_path / "later.img"
    file.write_bytes(bytes(1 << 20))
    async with guests.booted(qemu=qemu) as vm:
        node = {"driver": "file", "node-name": "later", "filename": str(file)}
        await vm.execute("blockdev-add", node)
        device = {"driver": "virtio-blk-pci", "drive": "later", "id": "l", "bus": "spare-port0"}
        await vm.execute("device_add", device)
        await _until(vm, "[ -b /dev/vda ]")


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
async def test_kvm_tiny_prints_counts_and_echoes(
    qemu: str, accel: Accel, request: pytest.FixtureRequest
) -> None:
    if accel == "kvm":
        request.getfixturevalue("kvm_here")
    spec = attrs.evolve(qmpkit.load_profile("kvm-tiny"), qemu=qemu, accel=accel)
    async with qmpkit.running(spec) as vm:
        await vm.console.expect(guests.KVM_TINY_READY)
        first = await counted(vm)
        await vm.console.expect("...")
        assert await counted(vm) > first
        await vm.console.send(b"!")
        await vm.console.expect("!")


async def test_kvm_tinys_disk_boots_from_a_bios(qemu: str) -> None:
    file = guests.build_kvm_tiny() / "disk.img"
    disk = Disk(file, format="raw", readonly=True)
    spec = MachineSpec(name="disk", qemu=qemu, accel="tcg", memory="16MiB", disks=[disk])
    async with qmpkit.running(spec) as vm:
        await vm.console.expect(guests.KVM_TINY_READY)
        await vm.console.expect("..")


@pytest.mark.parametrize("name", BOOTED_COPIES)
@pytest.mark.qemus(*NEWEST)
async def test_copies_of_a_booted_guest_are_apart(qemu: str, name: str) -> None:
    spec = profile(name, qemu)
    saved = await copies.template_of(spec)
    before = _checksum(saved.path)
    async with (
        guests.booted(spec, name="one") as one,
        guests.booted(spec, name="two") as two,
    ):
        for vm in (one, two):
            written = await vm.agent.run(["sh", "-c", f"echo {vm.name} >/tmp/who"])
            assert written.ok
        texts = [(await vm.agent.run(["cat", "/tmp/who"])).text for vm in (one, two)]
        assert texts == ["one\n", "two\n"]
        # Neither has booted: the log of one boot is in both, to the microsecond.
        logs = [(await vm.agent.run(["dmesg"])).text.splitlines() for vm in (one, two)]
        assert len(logs[0]) > 100
        assert logs[0][:100] == logs[1][:100]
    assert _checksum(saved.path) == before


def _checksum(directory: Path) -> str:
    with (directory / "ram").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The cache is shared with whatever else runs on this host.
OWN = f"own-{os.getpid()}"


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What the test has saved is gone afterwards."""
    yield
    for path in _saved():
        shutil.rmtree(path)


def _saved() -> list[Path]:
    return [*store.guests_dir().glob(f"*template-{OWN}-*")]


@pytest.mark.usefixtures("forgotten")
async def test_many_tasks_share_one_first_boot(qemu: str) -> None:
    spec = attrs.evolve(profile("tiny-microvm", qemu), name=OWN)
    found: list[qmpkit.Template] = []

    async def ask() -> None:
        found.append(await copies.template_of(spec))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert _saved() == [found[0].path]
    assert {saved.path for saved in found} == {found[0].path}


@pytest.mark.usefixtures("forgotten")
async def test_a_cancelled_first_boot_leaves_nothing(qemu: str) -> None:
    spec = attrs.evolve(profile("kvm-tiny", qemu), name=OWN)
    with trio.move_on_after(1) as scope:  # its prompt never comes
        await copies.template_of(spec)
    assert scope.cancelled_caught
    assert _saved() == []
