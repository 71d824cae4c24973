"""Supervisor and QEMU are killed between any two steps of a change of disks: nothing is lost."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmpkit import MachineSpec, Supervisor
from qmpkit.supervisor.kept import Kept
from qmpkit.testing.leaks import leaks
from tests.live.blocks import bare, holds, nothing_left, write
from tests.live.dying import STEPS
from tests.live.kept import Places, end_all, lab
from tests.sizes import DISK_KILLED, DISK_KILLS, NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.usefixtures("places"),
]

# The steps of a change are what it asks of QEMU, its entries in the journal, its files.
PROGRAM = (
    STEPS
    + """
kind, folder = words

step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.ledger:KeptLedger", "intend")
step("qmpkit.supervisor.ledger:KeptLedger", "settle")
step("qmpkit.operations.block.snapshots", "place_layer")
step("qmpkit.operations.block.disks", "place_empty")
step("qmpkit.operations.block.snapshots", "place_file")
step("qmpkit.operations.block.undertaking", "remove_files")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        kept = lab.kept["bare"]
        qemu, vm, armed = kept.pid, kept.vm, True
        if kind == "snapshot":
            await vm.snapshots.take(f"s{last}{victims}")
        elif kind == "ram":
            await vm.snapshots.take(f"s{last}{victims}", ram=True)
        elif kind == "merge":
            await vm.snapshots.delete(vm.snapshots.list()[-1].name)
        else:
            await vm.disks.move("disk0", f"{folder}/m{last}{victims}.qcow2")
        print("done", flush=True)

trio.run(main)
"""
)


@pytest.mark.bound(60 + 8 * DISK_KILLS)
@pytest.mark.parametrize("kind", DISK_KILLED)
async def test_killed_between_any_two_steps(
    qemu: str, places: Places, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "disks"
    folder.mkdir()
    spec = bare(qemu, folder, "qcow2")
    expected: dict[int, int] = {}
    async with leaks():
        for number, (last, victims) in enumerate(_deaths()):
            async with lab() as supervisor:
                kept = await _up(supervisor, spec)
                await _wrote(kept, expected, number)
                if kind == "merge":
                    assert kept.vm is not None
                    await kept.vm.snapshots.take(f"n{number}")
                    await _wrote(kept, expected, number + 50)
            if not await _dies(kind, folder, last, victims):
                break
            async with lab() as supervisor:
                kept = await _up(supervisor, spec)
                assert kept.vm is not None
                assert kept.record.change is None
                await nothing_left(kept.vm)
                await _wrote(kept, expected, number + 100)
        async with lab() as supervisor:
            kept = supervisor.kept["bare"]
            await supervisor.declare("bare", "stopped")
            (disk,) = kept.spec.disks
            points = kept.spec.snapshots
            known = {disk.file} | {file for it in points for file in it.disks.values()}
            known |= {file for it in points for file in it.beside}
        await end_all()
    await holds(disk.file, "qcow2", expected)
    there = {str(path) for path in _files(folder)}
    if kind != "move":  # which leaves the files that it moves from
        assert there == known
    assert known <= there


def _deaths() -> Iterator[tuple[int, str]]:
    for last in range(1, DISK_KILLS + 1):
        yield last, "both" if last % 2 else "supervisor"


async def _up(supervisor: Supervisor, spec: MachineSpec) -> Kept:
    kept = await supervisor.ensure(spec, restart="never", paused=True)
    await kept.until(lambda: kept.vm is not None and kept.record.change is None)
    return kept


async def _wrote(kept: Kept, expected: dict[int, int], block: int) -> None:
    assert kept.vm is not None
    expected[block] = block % 250 + 1
    await write(kept.vm, "disk0", block, expected[block])


async def _dies(kind: str, folder: Path, last: int, victims: str) -> bool:
    argv = [sys.executable, "-c", PROGRAM, kind, str(folder), str(last), victims]
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    if done.stdout == b"done\n":
        return False
    assert done.returncode == -signal.SIGKILL, done.stderr
    return True


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())
