"""A machine of many parts moves whole, or says which of them cannot."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import (
    CannotMigrate,
    Cpu,
    Disk,
    Forward,
    MachineSpec,
    Memory,
    Uefi,
    UsbController,
    UsbTablet,
    UserNic,
)
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, write
from tests.live.test_uefi import lacking

pytestmark = pytest.mark.live


def many(qemu: str, folder: Path) -> MachineSpec:
    disks = [
        Disk(str(folder / "a.qcow2"), format="qcow2", make="16MiB", iothread="io0"),
        Disk(str(folder / "b.raw"), format="raw", make="1MiB", interface="virtio-scsi"),
        Disk(interface="cdrom", format="raw", id="cd0"),
    ]
    return MachineSpec(
        name="many",
        qemu=qemu,
        accel="tcg",
        cpu=Cpu(cpus=1, maxcpus=4, model="Nehalem"),
        memory=Memory("98320KiB", maxmem="1GiB", slots=2),
        firmware=Uefi(vars=str(folder / "vars.fd")),
        display="std",
        agent=True,
        rng=True,
        balloon=True,
        root_ports=4,
        vmgenid="auto",
        nics=[UserNic(forwards=[Forward(0, 22)]), UserNic(model="e1000e")],
        disks=disks,
        devices=[UsbController(), UsbTablet()],
    )


async def test_all_of_it_there_and_back(qemu: str, tmp_path: Path) -> None:
    lacking(secure_boot=False)
    async with leaks(), qmpkit.running(many(qemu, tmp_path)) as vm:
        await vm.memory.add("128MiB")
        await vm.nics.add(UserNic())
        await vm.snapshots.take("before")
        ports = await vm.forwards()
        async with qmpkit.receiving(vm) as there:
            await vm.migrate(there)
            await write(there.vm, "disk0", 0, 5)
            async with qmpkit.receiving(there.vm) as back:
                await there.vm.migrate(back)
                assert back.vm.spec == vm.spec and await back.vm.forwards() == ports
                assert (await back.vm.execute("query-status"))["running"]
                await back.vm.snapshots.delete("before")
                assert await back.vm.execute("query-jobs") == []
                (file, *_) = [disk.file for disk in back.vm.spec.disks]
    await holds(file, "qcow2", {0: 5})


async def test_a_part_that_stays_is_named(qemu: str, tmp_path: Path) -> None:
    spec = many(qemu, tmp_path)
    nvme = Disk(str(tmp_path / "n.qcow2"), format="qcow2", make="1MiB", interface="nvme")
    spec = attrs.evolve(spec, disks=[*spec.disks, nvme], devices=[], firmware=None)
    async with leaks(), qmpkit.running(spec) as vm:
        faults = await vm.migration_faults(qemu="/no/qemu")
        assert [fault.path for fault in faults] == ["", "qemu"]
        assert "nvme" in faults[0].message
        with pytest.raises(CannotMigrate, match="nvme"):
            async with qmpkit.receiving(vm):
                pass
