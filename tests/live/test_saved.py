"""Saved machines: RAM, devices and disks of one moment in a folder, and restored from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import HostLacks, JobFailed, SpecInvalid, State
from qmpkit.host.firmware import find_firmware
from qmpkit.machine.state_forms import Form
from qmpkit.operations.jobs import JobProgress
from qmpkit.spec.firmware import Uefi
from qmpkit.testing import guests
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, nothing_left, write
from tests.live.counting import counted, counting
from tests.live.small_disk import small_disk
from tests.sizes import NEWEST, OLDEST, QEMU_VERSIONS, RAM_FORMS, SAVED_CANCELS

pytestmark = pytest.mark.live


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_linux_goes_on_once_where_it_was(qemu: str, tmp_path: Path) -> None:
    async with leaks():
        async with guests.booted(qemu=qemu) as vm:
            before = await vm.agent.run(
                ["sh", "-c", "echo kept > /tmp/it; cat /proc/sys/kernel/random/boot_id"]
            )
            saved = await vm.save(tmp_path / "unit", ram="packed")
            assert vm.report is not None and vm.report.expected
        assert saved == await qmpkit.saved_machine(tmp_path / "unit")
        own = attrs.evolve(vm.spec.memory, mem_path=None)  # of the template that it was cloned from
        assert saved.spec == attrs.evolve(vm.spec, disks=saved.spec.disks, memory=own)
        assert saved.size < 64 << 20 and saved.spec.machine != "q35"
        assert await qmpkit.verify_saved(tmp_path / "unit") == ()
        async with qmpkit.restored(tmp_path / "unit", verify=True) as vm:
            assert vm.state is State.RUNNING and vm.spec.resume_from is None
            after = await vm.agent.run(["sh", "-c", "cat /tmp/it /proc/sys/kernel/random/boot_id"])
            assert after.text == f"kept\n{before.text}"


@pytest.mark.qemus(*OLDEST)
async def test_disks_are_those_of_the_moment(qemu: str, tmp_path: Path) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    async with leaks():
        async with qmpkit.running(counting(qemu, disks, "qcow2", "raw")) as vm:
            await vm.console.expect("..")
            for disk in ("disk0", "disk1"):
                await write(vm, disk, 0, 1)
            first = await counted(vm)
            seen: list[JobProgress] = []
            await vm.save(tmp_path / "copy", copy_disks=True, go_on=True, progress=seen.append)
            last = await counted(vm)
            assert vm.state is State.RUNNING
            assert {it.state.type for it in seen} == {"migrate", "checksum"}
            await nothing_left(vm)
            await write(vm, "disk0", 0, 2)
            left = await vm.save(tmp_path / "unit")
        assert (tmp_path / "unit").stat().st_mode & 0o777 == 0o700
        assert names_in(tmp_path / "unit") == ["manifest.json", "memory"]
        assert names_in(tmp_path / "copy") == [
            "disk0.qcow2",
            "disk1.qcow2",
            "firmware",
            "manifest.json",
            "memory",
        ]
        shutil.move(tmp_path / "copy", tmp_path / "moved")
        for name in ("one", "two"):  # as often as one likes
            layers = tmp_path / name
            layers.mkdir()
            async with qmpkit.restored(tmp_path / "moved", layers=layers, paused=True) as vm:
                assert vm.state is State.PAUSED and first <= await counted(vm) <= last
                await vm.resume()
                await vm.console.expect("..")
                await write(vm, "disk0", 1, 3)
            assert names_in(layers) == ["disk0.qcow2", "disk1.qcow2"]
            await holds(str(layers / "disk0.qcow2"), "qcow2", {0: 1, 1: 3})
            await holds(str(layers / "disk1.qcow2"), "qcow2", {0: 1})
            shutil.rmtree(layers)
        async with qmpkit.restored(tmp_path / "unit") as vm:
            assert await counted(vm) >= last
            assert [disk.file for disk in vm.spec.disks] == [disk.file for disk in left.spec.disks]
            await write(vm, "disk0", 1, 4)
        with pytest.raises(SpecInvalid, match=r"it was restored at .* have gone on since"):
            async with qmpkit.restored(tmp_path / "unit"):
                pass
        await holds(left.spec.disks[0].file, "qcow2", {0: 2, 1: 4})
        async with qmpkit.restored(tmp_path / "moved") as vm:
            await write(vm, "disk1", 0, 5)
        await holds(str(tmp_path / "moved/disk1.qcow2"), "qcow2", {0: 5})
        with pytest.raises(SpecInvalid, match="have gone on since"):
            async with qmpkit.restored(tmp_path / "moved"):
                pass


@pytest.mark.qemus(*QEMU_VERSIONS)
@pytest.mark.parametrize("ram", RAM_FORMS)
async def test_the_ram_in_every_form(qemu: str, tmp_path: Path, ram: Form) -> None:
    async with qmpkit.running(counting(qemu, tmp_path)) as vm:
        known = await vm.execute("query-migrate-capabilities")
        if ram == "mapped" and all(it["capability"] != "mapped-ram" for it in known):
            with pytest.raises(SpecInvalid, match=r"ram: this QEMU cannot map it"):
                await vm.save(tmp_path / "unit", ram=ram)
            assert names_in(tmp_path) == []
            return
        await vm.console.expect("..")
        await vm.save(tmp_path / "other", ram=ram, go_on=True)  # the next of another form
        await vm.save(tmp_path / "plain", go_on=True)
        at = await counted(vm)
        saved = await vm.save(tmp_path / "unit", ram=ram)
    assert saved.ram == ram
    async with qmpkit.restored(tmp_path / "unit", paused=True) as vm:
        assert await counted(vm) >= at


@pytest.mark.qemus(*NEWEST)
async def test_a_guest_of_kvm_goes_on(kvm_here: None, qemu: str, tmp_path: Path) -> None:
    spec = attrs.evolve(counting(qemu, tmp_path), accel="kvm")
    async with qmpkit.running(spec) as vm:
        await vm.console.expect("..")
        at = await counted(vm)
        saved = await vm.save(tmp_path / "unit")
    assert saved.accel == "kvm" and saved.cpu_flags
    async with qmpkit.restored(tmp_path / "unit") as vm:
        assert vm.accel == "kvm" and await counted(vm) >= at
        await vm.console.expect(".")


async def test_what_cannot_be_is_refused(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(counting(qemu, tmp_path, "qcow2")) as vm:
        names = names_in(tmp_path)
        with pytest.raises(SpecInvalid, match="go_on: the disks would go on too"):
            await vm.save(tmp_path / "unit", go_on=True)
        with pytest.raises(SpecInvalid) as told:
            await vm.save(tmp_path / "no/unit", ram="zip")  # type: ignore[arg-type]
        assert [fault.path for fault in told.value.faults] == ["ram", "path"]
        (tmp_path / "taken").mkdir()
        with pytest.raises(SpecInvalid, match="is there already"):
            await vm.save(tmp_path / "taken")
        (tmp_path / "taken").rmdir()
        assert vm.state is State.RUNNING and names_in(tmp_path) == names


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_a_save_leaves_nothing(qemu: str, tmp_path: Path) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    async with leaks(), qmpkit.running(counting(qemu, disks, "qcow2")) as vm:

        async def save() -> None:
            await vm.save(tmp_path / "unit", copy_disks=True, go_on=True, ram="packed")

        async def after() -> None:
            assert vm.state is State.RUNNING
            if (tmp_path / "unit").exists():
                assert await qmpkit.verify_saved(tmp_path / "unit") == ()
                shutil.rmtree(tmp_path / "unit")
            assert names_in(tmp_path) == ["disks"]
            await nothing_left(vm)

        await cancel_at_every_checkpoint(save, every=SAVED_CANCELS, after=after)


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("ram", ["plain", "packed"])
async def test_a_full_disk_takes_none(qemu: str, tmp_path: Path, ram: Form) -> None:
    with small_disk(tmp_path / "small") as small:
        async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
            (small.path / "ballast").write_bytes(bytes(small_room(ram)))
            with pytest.raises(JobFailed, match=r"No space left|[Uu]nable to write|error"):
                await vm.save(small.path / "unit", ram=ram)
            assert vm.state is State.RUNNING and names_in(small.path) == ["ballast"]
            at = await counted(vm)
            with trio.fail_after(60):
                while await counted(vm) == at:
                    await vm.console.expect(".")


def small_room(ram: Form) -> int:
    """How much of the megabyte is taken: the RAM of the guest packs to next to nothing."""
    return (1 << 20) - (64 << 10 if ram == "plain" else 8 << 10)


@pytest.mark.qemus(*NEWEST)
async def test_uefi_variables_travel(qemu: str, tmp_path: Path) -> None:
    try:
        find_firmware("x86_64", secure_boot=False)
    except HostLacks as lacks:
        pytest.skip(str(lacks))
    store = tmp_path / "web.vars"
    spec = attrs.evolve(counting(qemu, tmp_path), firmware=Uefi(vars=str(store)), memory="64MiB")
    async with qmpkit.running(spec, paused=True) as vm:
        await vm.save(tmp_path / "unit")
    saved = await qmpkit.saved_machine(tmp_path / "unit")
    assert isinstance(saved.spec.firmware, Uefi)
    assert set(saved.files) == {"memory", "variables"} and len(saved.needs) == 1
    whole = store.read_bytes()
    layers = tmp_path / "layers"
    layers.mkdir()
    async with qmpkit.restored(tmp_path / "unit", layers=layers, paused=True) as vm:
        assert vm.spec.firmware == Uefi(
            code=next(iter(saved.needs)),
            template=saved.spec.firmware.template,
            vars=str(layers / "variables"),
        )
    assert (layers / "variables").read_bytes() == whole
    store.unlink()
    async with qmpkit.restored(tmp_path / "unit", paused=True):
        assert store.read_bytes() == whole
