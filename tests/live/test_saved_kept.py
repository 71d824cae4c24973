"""Kept machines that are saved: they run, or they are saved, whoever dies, and never both."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest

import qmpkit
from qmpkit import JobFailed, SpecInvalid
from qmpkit.operations.saved import saving
from qmpkit.operations.stillness import write_memory
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, nothing_left, write
from tests.live.counting import counted, counting
from tests.live.dying import STEPS, dies
from tests.live.kept import Places, boot_of_the_past, end_all, kill, lab
from tests.live.small_disk import small_disk
from tests.sizes import NEWEST, OLDEST, SAVED_CANCELS, SAVED_KILLED

pytestmark = pytest.mark.live


def saved_in(places: Places) -> list[str]:
    return sorted(str(it.relative_to(places.state)) for it in places.state.glob("lab/saved/*"))


async def ticked(vm: Any) -> int:
    """Its counter, which goes on."""
    at = await counted(vm)
    while await counted(vm) == at:
        await vm.console.expect(".")
    return await counted(vm)


@pytest.mark.qemus(*OLDEST)
async def test_it_goes_on_after_a_reboot(qemu: str, places: Places, tmp_path: Path) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    spec = counting(qemu, disks, "qcow2")
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, restart="always")
            vm: Any = kept.vm
            await write(vm, "disk0", 0, 1)
            at = await ticked(vm)
            saved = await supervisor.save("bare", ram="packed")
            assert (kept.state, kept.declared, kept.vm) == ("saved", "stopped", None)
            assert saved.ram == "packed" and saved_in(places) == ["lab/saved/bare"]
            with pytest.raises(SpecInvalid, match="it is saved"):
                await supervisor.save("bare")
            with pytest.raises(SpecInvalid, match="fits no other spec"):
                await supervisor.ensure(attrs.evolve(spec, memory="24MiB"))
        boot_of_the_past(places)
        shutil.rmtree(places.runtime)
        places.runtime.mkdir(mode=0o700)
        async with lab() as supervisor:
            kept = supervisor.kept["bare"]
            await kept.wait_rest()
            assert kept.state == "saved" and not places.qemus()
            await supervisor.declare("bare", "running")
            vm = kept.vm
            assert await ticked(vm) > at and kept.spec.resume_from is None
            assert saved_in(places) == []
            await write(vm, "disk0", 1, 2)
            (went,) = await supervisor.save_kept()
            assert went.failure is None and kept.state == "saved"
            os.utime(disks / "0.qcow2")
            with pytest.raises(SpecInvalid, match="was written to since the machine was saved"):
                await supervisor.declare("bare", "running")
            assert kept.spec.resume_from is not None
            await supervisor.discard_saved("bare")
            assert kept.state == "gone" and saved_in(places) == []
            with pytest.raises(SpecInvalid, match="it is not saved"):
                await supervisor.discard_saved("bare")
            await supervisor.declare("bare", "paused")
            assert await counted(kept.vm) == 0, "it is about to boot"
            await supervisor.save("bare")
            await supervisor.forget("bare")
            assert saved_in(places) == []
    await holds(str(disks / "0.qcow2"), "qcow2", {0: 1, 1: 2})


@pytest.mark.qemus(*OLDEST)
async def test_its_disks_stay_as_its_ram_fits_them(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    async with leaks(), lab() as supervisor:
        kept = await supervisor.ensure(counting(qemu, disks, "qcow2"))
        vm: Any = kept.vm
        await write(vm, "disk0", 0, 1)
        await vm.backups.run(tmp_path / "backup")  # whose bitmap is written to as it is opened
        at = await ticked(vm)
        await supervisor.save("bare")
        async with supervisor.at_rest("bare") as machine:
            (layer,) = await machine.disks.chain("disk0")
            assert layer.bitmaps
            for changing in (
                lambda: machine.disks.move("disk0", tmp_path / "moved.qcow2"),
                lambda: machine.disks.resize("disk0", "1GiB"),
                lambda: machine.disks.flatten("disk0"),
                lambda: machine.backups.run(tmp_path / "backup"),
            ):
                with pytest.raises(SpecInvalid, match="its RAM fits its disks as they are"):
                    await changing()
            with pytest.raises(SpecInvalid, match="its RAM fits its disks as they are"):
                async with machine.backups.pulling(tmp_path / "pull", checkpoint="monday"):
                    pass
            await machine.snapshots.take("one")
        with pytest.raises(SpecInvalid, match="it is saved, and what it was saved with fits no"):
            await supervisor.revert("bare", "one")
        await supervisor.declare("bare", "running")
        assert await ticked(kept.vm) > at
        await supervisor.declare("bare", "stopped")
        await supervisor.forget("bare")
    await holds(str(disks / "0.qcow2"), "qcow2", {0: 1})


@pytest.mark.qemus(*NEWEST)
async def test_it_runs_on_when_it_cannot_be_saved(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    places.state.mkdir()
    async with lab() as supervisor:
        kept = await supervisor.ensure(counting(qemu, disks, "qcow2"))
        vm: Any = kept.vm
        with pytest.raises(SpecInvalid, match=r"it is kept.*Supervisor\.save\('bare'\)"):
            await vm.save(tmp_path / "unit")
        await vm.save(tmp_path / "unit", copy_disks=True, go_on=True)
        (supervisor.state_dir / "saved").mkdir()
        with small_disk(supervisor.state_dir / "saved") as small:
            small.fill()
            with pytest.raises(qmpkit.ImageFailed, match="No space left"):
                await supervisor.save("bare")
            small.free()
            (small.path / "ballast").write_bytes(bytes((1 << 20) - (64 << 10)))
            with pytest.raises(JobFailed):
                await supervisor.save("bare")
        assert kept.declared == "running" and kept.record.change is None
        await ticked(vm)

        async def after() -> None:
            if kept.declared == "stopped":  # it was done before
                await kept.wait_rest()
                await supervisor.declare("bare", "running")
            await kept.wait_running()
            await ticked(kept.vm)
            assert saved_in(places) == [] and kept.vm is not None
            await nothing_left(kept.vm)

        async def save() -> None:
            await supervisor.save("bare")

        await cancel_at_every_checkpoint(save, every=SAVED_CANCELS, after=after)
    await end_all()


PROGRAM = (
    STEPS
    + """
step("qmpkit.operations.saved.saving", "write_memory")
step("qmpkit.operations.saved.folder:FolderDraft", "place")
step("qmpkit.supervisor.shelf:Shelf", "_declare")
step("qmpkit.machine.machine:Machine", "stop")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        qemu = lab.kept["bare"].pid
        armed = True
        await lab.save("bare")
        print("done", flush=True)

trio.run(main)
"""
)


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize(("last", "victims"), SAVED_KILLED)
async def test_killed_it_runs_or_is_saved(
    qemu: str, places: Places, tmp_path: Path, last: int, victims: str
) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, disks, "qcow2"), restart="always")
            await write(kept.vm, "disk0", 0, 1)  # type: ignore[arg-type]
            at = await ticked(kept.vm)
        assert await dies(PROGRAM, last=last, victims=victims)
        async with lab() as supervisor:
            kept = supervisor.kept["bare"]
            if kept.declared == "stopped":
                await kept.wait_rest()
                assert kept.state == "saved" and saved_in(places) == ["lab/saved/bare"]
                assert not places.qemus()
                await supervisor.declare("bare", "running")
                assert await ticked(kept.vm) > at
            else:
                await kept.until(lambda: kept.record.change is None)
                await kept.wait_running()
                if victims == "supervisor":
                    assert await ticked(kept.vm) > at
            assert saved_in(places) == [] and kept.record.change is None
            assert len(places.qemus()) == 1
            await nothing_left(kept.vm)  # type: ignore[arg-type]
        await end_all()
    await holds(str(disks / "0.qcow2"), "qcow2", {0: 1})


@pytest.mark.qemus(*NEWEST)
async def test_a_qemu_that_dies_in_a_save_is_restarted(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab() as supervisor:
        kept = await supervisor.ensure(counting(qemu, tmp_path), restart="always")
        first = kept.pid

        async def killing(*args: Any, **words: Any) -> None:
            assert first is not None
            kill(first)
            await write_memory(*args, **words)

        monkeypatch.setattr(saving, "write_memory", killing)
        with pytest.raises((qmpkit.MachineDied, qmpkit.MachineGone, qmpkit.MonitorLost)):
            await supervisor.save("bare")
        await kept.until(lambda: kept.pid not in (None, first) and kept.state == "running")
        assert saved_in(places) == []
    await end_all()
