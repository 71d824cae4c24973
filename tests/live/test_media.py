"""CDs put into a drive and taken out, and a guest that holds one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

import qmpkit
from qmpkit import Disk, ImageInUse, IoLimits, MachineSpec, SpecInvalid, TrayLocked
from qmpkit.images.seed import CloudInit, make_seed
from qmpkit.machine.ledger import Change
from qmpkit.operations.block.recovery import recover
from qmpkit.supervisor.differences import disk_differences
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.guests import booted
from qmpkit.testing.leaks import leaks
from tests.live.blocks import bare, nothing_left, told
from tests.live.kept import Places, end_all, lab
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


def drives(spec: MachineSpec, *files: str) -> MachineSpec:
    """With a SATA and a SCSI drive, and these in them."""
    kinds: Any = ("cdrom", "scsi-cdrom")
    cds = [
        Disk(file, format="raw", interface=kind, id=f"cd{number}")
        for number, (kind, file) in enumerate(zip(kinds, files, strict=True))
    ]
    return attrs.evolve(spec, disks=[*spec.disks, *cds])


@pytest.fixture
def discs(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{number}.iso" for number in range(2)]
    for file in files:
        file.write_bytes(bytes(1 << 16))
    return [str(file) for file in files]


async def inside(vm: qmpkit.VM, disk: str) -> tuple[str, bool]:
    """The file in a drive, and whether its tray is open."""
    (block,) = [it for it in await vm.execute("query-block") if it["qdev"].endswith(disk)]
    return block.get("inserted", {}).get("file", ""), block["tray_open"]


async def test_a_drive_is_filled_changed_and_emptied(
    qemu: str, tmp_path: Path, discs: list[str]
) -> None:
    one, two = discs
    spec = drives(bare(qemu, tmp_path, "qcow2"), "", one)
    async with leaks():
        async with qmpkit.running(spec, paused=True) as vm:
            assert [await inside(vm, cd) for cd in ("cd0", "cd1")] == [("", False), (one, False)]
            await vm.disks.limit("cd0", IoLimits(iops=9))
            await vm.disks.insert("cd0", two)
            assert await inside(vm, "cd0") == (two, False)
            assert await told(vm, "iops", disk="cd0") == [9], "which an empty drive does not take"
            await vm.disks.insert("cd0", one)
            await vm.disks.insert("cd1", two)
            await nothing_left(vm)
            await vm.snapshots.take("one")
            spec = vm.spec
        async with qmpkit.running(spec, paused=True) as vm:
            assert [await inside(vm, cd) for cd in ("cd0", "cd1")] == [(one, False), (two, False)]
            await vm.disks.eject("cd0")
            await vm.disks.eject("cd0")
            await vm.disks.eject("cd1")
            await nothing_left(vm)
            spec = vm.spec
            assert spec.disks[1] == attrs.evolve(
                drives(spec, "", "").disks[-2], limits=IoLimits(iops=9)
            )
        async with qmpkit.running(spec, paused=True) as vm:
            assert [await inside(vm, cd) for cd in ("cd0", "cd1")] == [("", False), ("", False)]
        async with qmpkit.at_rest(spec) as machine:
            await machine.disks.insert("cd1", two)
            spec = machine.spec
        async with qmpkit.running(spec, paused=True) as vm:
            assert await inside(vm, "cd1") == (two, False)


async def test_what_cannot_be_is_refused(qemu: str, tmp_path: Path, discs: list[str]) -> None:
    spec = drives(bare(qemu, tmp_path, "qcow2"), discs[0], "")
    async with qmpkit.running(spec, paused=True) as vm:
        for disk, file, format, why in (
            ("disk0", discs[1], None, "which has no tray"),
            ("cd9", discs[1], None, "no disk 'cd9'"),
            ("cd0", f"{tmp_path}/nix.iso", None, "does not exist"),
            ("cd0", discs[1], "qcow2", "is raw, not qcow2"),
            ("cd0", spec.disks[0].file, "qcow2", "already the image of"),
        ):
            with pytest.raises(SpecInvalid, match=why):
                await vm.disks.insert(disk, file, format=format)  # type: ignore[arg-type]
        other = bare(qemu, tmp_path, "raw")
        async with qmpkit.running(attrs.evolve(other, name="other"), paused=True):
            with pytest.raises(ImageInUse, match="other"):
                await vm.disks.insert("cd0", other.disks[0].file)
        assert await inside(vm, "cd0") == (discs[0], False)
        assert vm.spec.disks[1].file == discs[0]
        await nothing_left(vm)


async def test_cancelled_what_is_in_the_drive_is_in_the_spec(
    qemu: str, tmp_path: Path, discs: list[str]
) -> None:
    spec = drives(bare(qemu, tmp_path, "qcow2"), discs[0], "")
    async with qmpkit.running(spec, paused=True) as vm:

        async def change() -> None:
            now = vm.spec.disks[1].file
            await vm.disks.insert("cd0", discs[1] if now == discs[0] else discs[0])

        async def after() -> None:
            assert await inside(vm, "cd0") == (vm.spec.disks[1].file, False)
            await nothing_left(vm)

        assert await cancel_at_every_checkpoint(change, every=2, after=after) > 3


async def test_a_change_that_nobody_ended_is_settled_as_the_drive_is(
    qemu: str, tmp_path: Path, discs: list[str]
) -> None:
    spec = drives(bare(qemu, tmp_path, "qcow2"), discs[0], "")
    async with qmpkit.running(spec, paused=True) as vm:
        begun = vm.spec
        await vm.disks.eject("cd0")
        change = Change(what="eject", spec=vm.spec, begun=begun, sure=True, drive="cd0")
        await vm.execute("blockdev-open-tray", {"id": "cd0"})
        assert (await recover(vm.machine, change)).disks[1].is_empty
        assert await inside(vm, "cd0") == ("", False)

        await vm.disks.insert("cd0", discs[1])
        begun = vm.spec
        gone = attrs.evolve(begun.disks[1], file="", node=None)
        wanted = attrs.evolve(begun, disks=[begun.disks[0], gone, begun.disks[2]])
        change = Change(what="eject", spec=wanted, begun=begun, sure=True, drive="cd0")
        await vm.execute("blockdev-open-tray", {"id": "cd0"})
        assert await recover(vm.machine, change) == begun
        assert await inside(vm, "cd0") == (discs[1], False)
        await nothing_left(vm)


@pytest.mark.bound(180)  # it boots a guest where none is saved
async def test_a_guest_holds_what_it_has_mounted(
    qemu: str, tmp_path: Path, discs: list[str]
) -> None:
    drive = Disk(format="raw", interface="scsi-cdrom", id="cd0")
    spec = attrs.evolve(qmpkit.load_profile("tiny"), qemu=qemu, accel="tcg", disks=[drive])
    seed = await make_seed(tmp_path / "seed.iso", CloudInit(hostname="held"))
    async with booted(spec) as vm:
        await vm.disks.insert("cd0", seed)
        mount = "until mount -t iso9660 -o ro /dev/sr0 /mnt; do usleep 50000; done 2>/dev/null"
        await vm.agent.run(["sh", "-c", f"mkdir -p /mnt; {mount}"], check=True)
        assert "held" in (await vm.agent.run(["cat", "/mnt/meta-data"], check=True)).text
        with pytest.raises(TrayLocked, match=r"refused to insert .*unmount the CD in the guest"):
            await vm.disks.insert("cd0", discs[0])
        assert await inside(vm, "cd0") == (str(seed), False)
        assert vm.spec.disks[0].file == str(seed)
        await nothing_left(vm)
        await vm.disks.eject("cd0", force=True)
        assert vm.spec.disks[0].is_empty and await inside(vm, "cd0") == ("", False)
        await vm.agent.run(["umount", "/mnt"])
        await vm.disks.insert("cd0", seed)
        await vm.agent.run(["sh", "-c", f"{mount}; umount /mnt"], check=True)
        await vm.disks.eject("cd0")


@pytest.mark.usefixtures("places")
async def test_a_kept_machines_record_has_it(
    qemu: str, places: Places, tmp_path: Path, discs: list[str]
) -> None:
    async with leaks():
        spec = drives(bare(qemu, tmp_path, "qcow2"), "", discs[0])
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            await kept.vm.disks.insert("cd0", discs[1])
            await kept.vm.disks.eject("cd1")
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            await kept.until(lambda: kept.vm is not None)
            vm: Any = kept.vm
            assert not list(disk_differences(kept.spec, await vm.execute("query-block")))
            await supervisor.declare("bare", "stopped")
            kept = await supervisor.declare("bare", "paused")
            vm = kept.vm
            assert await inside(vm, "cd0") == (discs[1], False)
            assert await inside(vm, "cd1") == ("", False)
        await end_all()
