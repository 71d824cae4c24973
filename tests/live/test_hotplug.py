"""Devices come and go while a guest runs, and what cannot be is refused."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    VM,
    AgentSilent,
    CommandRefused,
    DgramNic,
    Disk,
    HostLacks,
    MachineSpec,
    NoPortLeft,
    Rng,
    Share,
    SpecInvalid,
    StreamNic,
    UnplugPending,
    UnplugRefused,
    UsbTablet,
    UserNic,
    Vsock,
)
from qmpkit.operations.hotplug.unplug import is_plugged
from qmpkit.testing import guests
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from tests.conftest import Board
from tests.live.blocks import bare
from tests.live.plugged import agreed, guest_sees, hmp
from tests.sizes import HOTPLUG_CANCELS, LONG, NEWEST, OLDEST, WHOLE_LIVES

pytestmark = pytest.mark.live

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")  # of Debian 12's qemu-system-common


@asynccontextmanager
async def tiny(qemu: str) -> AsyncIterator[VM]:
    """With four root ports for hotplug."""
    async with guests.booted("tiny", qemu=qemu) as vm:
        yield vm


@pytest.mark.qemus(*NEWEST)
async def test_what_comes_as_a_descriptor(qemu: str, tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(1 << 20))
    one, other = socket.socketpair()
    dgram, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other, dgram, far:
        async with tiny(qemu) as vm:
            fd = os.open(image, os.O_RDWR)
            disk = await vm.disks.add(Disk(image, format="raw", serial="fd"), fd=fd)
            os.close(fd)
            await vm.nics.add(StreamNic(), fd=one)
            await vm.nics.add(DgramNic(), fd=dgram)
            await agreed(vm, fdsets=1)
            await guest_sees(vm)
            await vm.snapshots.take("one")
            assert vm.spec.snapshots[0].disks == {disk.id: str(image)}, "what a restart opens"
            await vm.snapshots.delete("one")
            assert vm.spec.disks[0].file == str(image)
            one.close()
            assert other.recv(4), "the guest's frames come through"
            for nic in vm.spec.nics:
                await vm.nics.remove(nic.id)
            await vm.disks.remove(disk.id)
            await agreed(vm)


@pytest.mark.qemus(*OLDEST)
async def test_another_back_end_behind_a_nic(qemu: str) -> None:
    async with tiny(qemu) as vm:
        nic = await vm.nics.add(UserNic(forwards=["0:22"]))
        await guest_sees(vm)
        changed = await vm.nics.change(UserNic(id=nic.id, net="10.9.0.0/24"))
        assert changed.bus == nic.bus and vm.spec.nics == (changed,)
        assert "net=10.9.0.0" in await hmp(vm, "info network")
        await guest_sees(vm)
        with pytest.raises(SpecInvalid, match="no address, and no descriptor"):
            await vm.nics.change(DgramNic(id=nic.id))
        taken = socket.create_server(("127.0.0.1", 0))
        with taken, pytest.raises(SpecInvalid, match="is taken"):
            forward = f"{taken.getsockname()[1]}:22"
            await vm.nics.change(UserNic(id=nic.id, forwards=[forward]))
        assert "net=10.9.0.0" in await hmp(vm, "info network"), "the old one is back"
        await agreed(vm)


@pytest.mark.bound(60 + 600 // HOTPLUG_CANCELS)
@pytest.mark.qemus(*NEWEST)
async def test_cancelled_at_any_checkpoint_nothing_is_left(qemu: str, tmp_path: Path) -> None:
    image = tmp_path / "fd.raw"
    image.write_bytes(bytes(1 << 20))
    fd = os.open(image, os.O_RDWR)
    numbers = itertools.count()
    async with tiny(qemu) as vm:

        async def disk() -> None:
            file = f"{tmp_path}/{next(numbers)}.qcow2"
            await vm.disks.add(Disk(file, format="qcow2", make="8MiB", interface="virtio-scsi"))

        async def lent() -> None:
            await vm.disks.add(Disk(image, format="raw"), fd=fd)

        async def nic() -> None:
            await vm.nics.add(UserNic())

        async def device() -> None:
            await vm.devices.add(UsbTablet())

        finished = 0

        async def nothing() -> None:
            nonlocal finished
            for it in vm.spec.disks:
                finished += it.interface == "virtio-scsi"
                await vm.disks.remove(it.id)
            for cable in vm.spec.nics:
                await vm.nics.remove(cable.id)
            for plugged in reversed(vm.spec.devices):
                await vm.devices.remove(plugged.id)
            await agreed(vm)
            made = [name for name in os.listdir(tmp_path) if name.endswith("2")]  # noqa: PTH208
            assert len(made) <= finished, made

        for add in (disk, lent, nic, device):
            await cancel_at_every_checkpoint(add, every=HOTPLUG_CANCELS, after=nothing)
    os.close(fd)


@pytest.mark.bound(60 + 300 // HOTPLUG_CANCELS)
@pytest.mark.qemus(*OLDEST)
async def test_an_unplug_that_is_cancelled_can_be_asked_for_again(qemu: str) -> None:
    async with tiny(qemu) as vm:
        await vm.nics.add(UserNic())

        async def unplug() -> None:
            await vm.nics.remove("nic0")

        async def again() -> None:
            with suppress(SpecInvalid):  # the guest may have let go of it, or do so just now
                await vm.nics.remove("nic0")
            await agreed(vm)
            await vm.nics.add(UserNic())
            await agreed(vm)

        assert await cancel_at_every_checkpoint(unplug, every=HOTPLUG_CANCELS, after=again)


@pytest.mark.qemus(*NEWEST)
async def test_what_the_guest_lets_go_of_unasked_is_followed(qemu: str, tmp_path: Path) -> None:
    async with tiny(qemu) as vm:
        disk = await vm.disks.add(Disk(tmp_path / "a.raw", format="raw", make="1MiB", serial="a"))
        await guest_sees(vm)
        slot = "for it in /sys/bus/pci/slots/*/power; do echo 0 > $it; done"
        done = await vm.agent.run(["sh", "-c", slot])
        while vm.spec.disks:  # noqa: ASYNC110  # nothing tells when a spec follows
            await trio.sleep(0.01)
        await agreed(vm)
        assert (tmp_path / disk.file).exists(), done


@pytest.mark.qemus(*OLDEST)
async def test_what_cannot_be_is_told_and_leaves_nothing(qemu: str, tmp_path: Path) -> None:
    async with tiny(qemu) as vm:
        with pytest.raises(HostLacks, match="vhost_vsock"):
            await vm.devices.add(Vsock(cid=7))
        with pytest.raises(SpecInvalid, match="does not exist"):
            nope = Disk(tmp_path / "nope.raw", format="raw", interface="virtio-scsi")
            await vm.disks.add(nope)
        assert vm.spec.devices == (), "no controller is plugged for what cannot be"
        with pytest.raises(SpecInvalid, match="no device 'rng0' that can be removed"):
            await vm.devices.remove("rng0")
        disk = await vm.disks.add(Disk(tmp_path / "a.raw", format="raw", make="1MiB", serial="a"))
        await guest_sees(vm)
        mount = "mke2fs /dev/vda && mount /dev/vda /mnt"
        await vm.agent.run(["sh", "-c", mount], check=True)
        with pytest.raises(UnplugRefused, match="mounted there at /mnt"):
            await vm.disks.remove(disk.id, unmounted=True)
        await vm.agent.run(["umount", "/mnt"], check=True)
        async with vm.paused():
            begun = time.monotonic()
            with pytest.raises(UnplugPending, match="stands still"):
                await vm.disks.remove(disk.id)
            assert time.monotonic() - begun < 2
        await vm.snapshots.take("point")
        with pytest.raises(SpecInvalid, match="snapshots hold it: point"):
            await vm.disks.remove(disk.id)
        await vm.snapshots.delete("point")
        await vm.disks.remove(disk.id, unmounted=True)
        await agreed(vm)


@pytest.mark.qemus(*NEWEST)
async def test_an_id_that_was_given_is_not_given_again(qemu: str, tmp_path: Path) -> None:
    """Devices share one namespace: a device may have the id that the next disk would get."""
    spec = MachineSpec(qemu=qemu, accel="tcg", machine="q35", memory="64MiB", root_ports=8)
    async with qmpkit.running(spec, paused=True) as vm:
        for taken in ("disk0", "nic0", "rng1", "usb1"):
            await vm.devices.add(Rng(id=taken))
        disk = await vm.disks.add(Disk(tmp_path / "a.raw", format="raw", make="1MiB"))
        nic = await vm.nics.add(UserNic())
        rng = await vm.devices.add(Rng())
        tablet = await vm.devices.add(UsbTablet())
        assert [it.id for it in (disk, nic, rng)] == ["disk1", "nic1", "rng2"]
        assert isinstance(tablet, UsbTablet) and tablet.controller == "usb2"
        await agreed(vm)


@pytest.mark.qemus(*NEWEST)
async def test_a_layered_disk_goes_with_all_its_layers(qemu: str, tmp_path: Path) -> None:
    base = await qmpkit.images.create(tmp_path / "base.qcow2", "8MiB", "qcow2")
    make = qmpkit.Overlay(base, format="qcow2")
    async with tiny(qemu) as vm:
        top = Disk(tmp_path / "top.qcow2", format="qcow2", make=make, serial="top")
        disk = await vm.disks.add(top)
        await guest_sees(vm)
        await vm.disks.move(disk.id, tmp_path / "moved.qcow2")
        await vm.disks.remove(disk.id)
        await agreed(vm)


@pytest.mark.qemus(*NEWEST)
async def test_a_guest_that_has_not_booted(qemu: str, tmp_path: Path) -> None:
    spec = attrs.evolve(bare(qemu, tmp_path, "raw"), agent=True)
    async with qmpkit.running(spec) as vm:
        with pytest.raises(AgentSilent):
            await vm.disks.remove("disk0", unmounted=True)
        with pytest.raises(UnplugPending, match=r"did not answer within 0\.3 s"):
            await vm.disks.remove("disk0", grace=0.3)
        await agreed(vm)
        why = r"the only one holds a device .*root_ports = 8"
        with pytest.raises(NoPortLeft, match=why) as caught:
            await vm.disks.add(Disk(tmp_path / "b.raw", format="raw", make="1MiB"))
        assert caught.value.ports == 1
        assert not (tmp_path / "b.raw").exists()


@pytest.mark.qemus(*NEWEST)
async def test_boards_without_a_port(qemu: str, tmp_path: Path) -> None:
    spec = MachineSpec(name="micro", machine="microvm", qemu=qemu, accel="tcg", memory="64MiB")
    scsi = Disk(tmp_path / "a.raw", format="raw", make="1MiB", interface="virtio-scsi")
    async with qmpkit.running(attrs.evolve(spec, disks=[scsi]), paused=True) as vm:
        with pytest.raises(SpecInvalid, match="microvm has no PCI"):
            await vm.nics.add(UserNic())
        with pytest.raises(SpecInvalid, match="microvm has no PCI"):
            await vm.disks.add(Disk(tmp_path / "b.raw", format="raw", make="1MiB"))
        more = await vm.disks.add(attrs.evolve(scsi, file=str(tmp_path / "c.raw"), id=""))
        await agreed(vm)
        await vm.disks.remove(more.id)  # the guest is not asked on SCSI
        await agreed(vm)


@pytest.mark.boards(*WHOLE_LIVES)
async def test_boards_whose_ports_have_a_button(board: Board, tmp_path: Path) -> None:
    spec = MachineSpec(
        name="virt",
        arch=board.arch,
        machine="virt",
        qemu=board.qemu,
        accel="tcg",
        memory="64MiB",
        root_ports=2,
    )
    async with qmpkit.running(spec, paused=True) as vm:
        disk = await vm.disks.add(Disk(tmp_path / "a.raw", format="raw", make="1MiB"))
        await vm.nics.add(UserNic())
        await agreed(vm)
        with pytest.raises(NoPortLeft):
            await vm.devices.add(Rng())
        with pytest.raises(UnplugPending, match="stands still"):
            await vm.disks.remove(disk.id)
        await agreed(vm)


@pytest.mark.qemus(*NEWEST)
async def test_what_qemu_refuses_is_undone(qemu: str, tmp_path: Path) -> None:
    async with tiny(qemu) as vm:
        bad = Disk(tmp_path / "a.raw", format="raw", make="1MiB", interface="nvme", serial="x")
        stranger = {"driver": "virtio-rng-pci", "id": "disk0", "bus": "spare-port3"}
        await vm.execute("device_add", stranger)  # somebody else has taken the name
        with pytest.raises(CommandRefused):
            await vm.disks.add(bad)
        assert not (tmp_path / "a.raw").exists()
        assert await vm.execute("query-named-block-nodes") == []
        assert await is_plugged(vm.machine, "disk0"), "what is a stranger's stays"


@pytest.mark.skipif(not LONG, reason="--long: it boots a guest with shared memory")
async def test_a_share_comes_and_goes(qemu: str, tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").write_text("from the host")
    place = tmp_path / "fs.sock"
    tiny = qmpkit.load_profile("tiny")
    memory = attrs.evolve(tiny.memory, share=True)
    spec = attrs.evolve(tiny, qemu=qemu, accel="tcg", memory=memory)
    argv = [str(VIRTIOFSD), f"--socket-path={place}", "-o", f"source={tmp_path}/share"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.run_process, [*argv, "-o", "sandbox=chroot"], check=False))
        while not place.exists():  # noqa: ASYNC110  # it tells nobody
            await trio.sleep(0.02)
        async with qmpkit.running(spec) as vm:
            await vm.agent.wait_ready()
            share = await vm.devices.add(Share(tag="work", socket=place))
            await agreed(vm)
            look = "until mount -t virtiofs work /mnt; do usleep 50000; done; cat /mnt/file"
            with trio.fail_after(30):
                seen = await vm.agent.run(["sh", "-c", f"({look}) 2>/dev/null; umount /mnt"])
            assert seen.text == "from the host"
            await vm.devices.remove(share.id)
            await agreed(vm)
        nursery.cancel_scope.cancel()
