"""Cancelled at any moment of start, run or stop, a real QEMU leaves nothing behind."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from statistics import median

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, MachineSpec, Overlay
from qmpkit.images.new import create
from qmpkit.testing.leaks import leaks
from tests.sizes import CANCELS_REAL, QEMU_VERSIONS

pytestmark = [pytest.mark.live, pytest.mark.bound(300)]

EACH = -(-CANCELS_REAL // len(QEMU_VERSIONS))  # rounded up: no version gets less than its share


@pytest.fixture
async def spec(qemu: str, tmp_path: Path) -> MachineSpec:
    """A machine with something of everything that a start has to put away again."""
    await create(tmp_path / "base.qcow2", "1MiB", "qcow2")
    return MachineSpec(
        name="cancelled",
        qemu=qemu,
        accel="tcg",
        memory="16MiB",
        agent=True,
        serials=2,
        disks=[
            Disk(tmp_path / "new.raw", format="raw", make="1MiB"),
            Disk(
                tmp_path / "over.qcow2",
                format="qcow2",
                make=Overlay(tmp_path / "base.qcow2", format="qcow2"),
            ),
        ],
    )


async def life(spec: MachineSpec, logs: Path, reached: list[str]) -> None:
    """Start, run and stop; *reached* tells how far it came."""
    options = qmpkit.LaunchOptions(tools_socket=logs / "tools")
    async with qmpkit.running(spec, logs=logs, options=options) as vm:
        reached.append("running")
        async with vm.paused():
            await vm.execute("query-status")
        await vm.reset()
        await vm.quit()
        reached.append("stopped")


async def measure(spec: MachineSpec, logs: Path) -> float:
    """How long a whole life takes here, images made anew as in every run."""
    begun = trio.current_time()
    await life(spec, logs, [])
    _forget(spec)
    return trio.current_time() - begun


def _forget(spec: MachineSpec) -> None:
    for disk in spec.disks:
        Path(disk.file).unlink(missing_ok=True)


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_cancelled_at_random_moments(spec: MachineSpec, tmp_path: Path) -> None:
    chance = random.Random()
    whole = median([await measure(spec, tmp_path) for _ in range(5)])
    cancelled = 0
    for number in range(EACH):
        # One in each slice of the life, so that a short run misses no part of it.
        delay = whole * (number + chance.random()) / EACH
        reached: list[str] = []
        try:
            async with leaks():
                with trio.move_on_after(delay) as scope:
                    await life(spec, tmp_path, reached)
        except BaseException as error:
            error.add_note(f"cancelled after {delay:.4f} s of {whole:.4f} s, reached {reached}")
            raise
        cancelled += scope.cancel_called
        assert not (tmp_path / "tools").exists()
        _check_images(spec, reached)
        _forget(spec)
    assert cancelled > EACH / 4


def _made(spec: MachineSpec) -> list[Path]:
    return [file for file in (Path(disk.file) for disk in spec.disks) if file.exists()]


def _check_images(spec: MachineSpec, reached: list[str]) -> None:
    """All of them or none, and no scratch file of either."""
    files = [Path(disk.file) for disk in spec.disks]
    there = _made(spec)
    assert there in ([], files)
    if reached:
        assert there == files  # they are the guest's
    known = {"base.qcow2", *(file.name for file in files)}
    folder = files[0].parent
    assert {path.name for path in folder.iterdir() if path.suffix != ".log"} <= known


async def test_a_cancelled_start_unmakes_its_images(spec: MachineSpec, tmp_path: Path) -> None:
    """A QEMU that never greets: its images are made, and nobody has used them."""
    silent = attrs.evolve(spec, launcher=[sys.executable, "-c", "import time; time.sleep(99)"])
    async with leaks():
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(life, silent, tmp_path, [])
                while len(_made(spec)) < len(spec.disks):  # noqa: ASYNC110
                    await trio.sleep(0.005)
                await trio.sleep(0.05)
                scope.cancel()
    assert scope.cancelled_caught
    assert not _made(spec)


async def test_a_failed_start_unmakes_its_images(spec: MachineSpec, tmp_path: Path) -> None:
    broken = attrs.evolve(spec, extra_args=["-device", "no-such-device"])
    async with leaks():
        with pytest.raises(qmpkit.LaunchFailed):
            await life(broken, tmp_path, [])
    assert not _made(spec)


async def test_a_cancelled_supervisor_start(spec: MachineSpec) -> None:
    """Three at once, cancelled at moments spread over the whole."""
    bare = attrs.evolve(spec, disks=[])
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
        async with leaks(), qmpkit.Supervisor("lab") as lab:
            with trio.move_on_after(delay):
                async with trio.open_nursery() as nursery:
                    for number in range(3):
                        nursery.start_soon(lab.start, attrs.evolve(bare, name=f"vm{number}"))
            assert {row.state for row in lab.table()} <= {"failed", "gone", "running"}
