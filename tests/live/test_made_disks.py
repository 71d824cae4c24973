"""`make=` with a real QEMU: under any name, and gone again when the start fails."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, LaunchFailed, MachineSpec, Overlay
from qmpkit.images import create

pytestmark = pytest.mark.live

NAMES = ["a,b 'c' \"d\"", "nbd:host", "-o two\nlines ü"]


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def inodes(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_ino for entry in folder.iterdir()}


@pytest.fixture
async def spec(qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineSpec:
    """Its paths are relative: QEMU must not take a colon in them for a protocol."""
    monkeypatch.chdir(tmp_path)
    disks = []
    for name in NAMES:
        await create(f"{name}.base", "1MiB", "qcow2")
        made = Overlay(f"{name}.base", format="qcow2")
        disks.append(Disk(f"{name}.top", format="qcow2", make=made))
    disks.append(Disk("data", format="raw", make="1MiB"))
    return MachineSpec(qemu=qemu, accel="tcg", disks=disks)


async def test_made_under_any_name(spec: MachineSpec, tmp_path: Path) -> None:
    bases = {f"{name}.base" for name in NAMES}
    async with qmpkit.running(spec, paused=True) as vm:
        nodes = await vm.machine.qmp.execute("query-named-block-nodes", {"flat": True})
    opened = {node["file"] for node in nodes}
    assert opened >= {str(tmp_path / disk.file) for disk in spec.disks}
    assert left(tmp_path) == bases | {disk.file for disk in spec.disks}
    before = inodes(tmp_path)
    async with qmpkit.running(spec, paused=True):
        pass
    assert inodes(tmp_path) == before


async def test_gone_again_when_the_start_fails(spec: MachineSpec, tmp_path: Path) -> None:
    before = left(tmp_path)
    with pytest.raises(LaunchFailed):
        async with qmpkit.running(attrs.evolve(spec, extra_args=("-no-such-option",))):
            raise AssertionError("the machine must not start")
    assert left(tmp_path) == before


@pytest.mark.parametrize("delay", [0.02, 0.06, 0.1, 0.14])
async def test_gone_again_or_whole_when_cancelled(
    spec: MachineSpec, tmp_path: Path, delay: float
) -> None:
    before = left(tmp_path)
    started = False
    with trio.move_on_after(delay):
        async with qmpkit.running(spec, paused=True):
            started = True
            await trio.sleep_forever()
    made = {disk.file for disk in spec.disks}
    assert left(tmp_path) == (before | made if started else before)


async def test_a_failing_block_keeps_the_disks(spec: MachineSpec, tmp_path: Path) -> None:
    before = left(tmp_path)
    with pytest.raises(ZeroDivisionError):
        async with qmpkit.running(spec, paused=True):
            raise ZeroDivisionError
    assert left(tmp_path) == before | {disk.file for disk in spec.disks}
