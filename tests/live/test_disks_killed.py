"""Supervisor and QEMU are killed between any two steps of a change of disks: nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

import qmpkit
from qmpkit import CommandRefused, MachineSpec, Supervisor, images
from qmpkit.machine.ledger import Change, Unwritten
from qmpkit.operations.block.recovery import recover, untagged
from qmpkit.supervisor.kept import Kept
from qmpkit.testing.leaks import leaks
from tests.live.blocks import bare, holds, nothing_left, write
from tests.live.dying import STEPS
from tests.live.kept import Places, end_all, lab
from tests.sizes import DISK_KILLED, DISK_KILLS, QEMU_VERSIONS

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*QEMU_VERSIONS),
    pytest.mark.usefixtures("places"),
]


# The steps of a change are what it asks of QEMU, its entries in the journal, its files.
PROGRAM = (
    STEPS
    + """
kind, folder, name = words

step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.ledger:KeptLedger", "intend")
step("qmpkit.supervisor.ledger:KeptLedger", "settle")
step("qmpkit.operations.block.snapshots", "place_layer")
step("qmpkit.operations.block.disks", "place_empty")
step("qmpkit.operations.block.snapshots", "place_file")
step("qmpkit.operations.undertaking", "remove_files")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        kept = lab.kept["bare"]
        qemu, vm, armed = kept.pid, kept.vm, True
        if kind == "snapshot":
            await vm.snapshots.take(f"s{name}")
        elif kind == "ram":
            await vm.snapshots.take(f"s{name}", ram=True)
        elif kind == "save":
            await vm.snapshots.save(f"r{name}")
        elif kind == "merge":
            await vm.snapshots.delete(vm.snapshots.list()[-1].name)
        else:
            await vm.disks.move("disk0", f"{folder}/m{name}.qcow2")
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
        last = turn = 0
        for number in range(DISK_KILLS):
            async with lab() as supervisor:
                kept = await _up(supervisor, spec)
                await _wrote(kept, expected, number)
                if kind == "merge":
                    assert kept.vm is not None
                    await kept.vm.snapshots.take(f"n{number}")
                    await _wrote(kept, expected, number + 50)
                assert kept.pid is not None
                pidfd = os.pidfd_open(kept.pid)
            last += 1
            victims = "both" if (last + turn) % 2 else "supervisor"
            if not await _dies(last, victims, kind, folder, number):
                last, turn = 0, turn + 1  # no step is left: from the first, with the others
            elif victims == "both":  # a thread of it may be in the disk yet, and hold the images
                await trio.lowlevel.wait_readable(pidfd)
            os.close(pidfd)
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
    inside = {it.name for it in (await images.info(disk.file)).snapshots}
    assert inside == {it.name for it in kept.spec.snapshots if it.kind == "internal"}
    there = {str(path) for path in _files(folder)}
    if kind != "move":  # which leaves the files that it moves from
        assert there == known
    assert known <= there


async def test_a_snapshot_with_ram_that_came_to_nothing_is_in_no_image(
    qemu: str, tmp_path: Path
) -> None:
    spec = bare(qemu, tmp_path, "qcow2", "raw")
    for disk in spec.disks:
        await images.create(disk.file, "1MiB", disk.format)
    for name in ("before", "ram"):
        await images.create_snapshot(spec.disks[0].file, name)
    for _ in range(2):
        await untagged(Change(what="", spec=spec, begun=spec, tag="ram"))
    assert [it.name for it in (await images.info(spec.disks[0].file)).snapshots] == ["before"]


class _Failing(Unwritten):
    """A journal that cannot be written once, and then can."""

    answers: tuple[bool, ...] = (False, True)

    async def settle(self, spec: MachineSpec) -> bool:
        answer, *rest = self.answers
        self.answers = tuple(rest) or (True,)
        return answer


async def test_a_move_that_neither_ends_nor_is_undone_on_record_loses_nothing(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = bare(qemu, tmp_path, "qcow2")
    async with qmpkit.running(spec, paused=True) as vm:
        machine, real = vm.machine, vm.machine.execute
        known = machine.spec

        async def refusing(command: str, *args: Any, **more: Any) -> Any:
            if command == "job-finalize":
                reply = {"error": {"class": "GenericError", "desc": "no"}}
                raise CommandRefused(machine.name, command, {}, reply)
            return await real(command, *args, **more)

        monkeypatch.setattr(machine, "execute", refusing)
        monkeypatch.setattr(machine, "ledger", _Failing())
        with pytest.raises(CommandRefused, match="no"):
            await vm.disks.move("disk0", tmp_path / "moved.qcow2")
        await nothing_left(vm)
        # The same with a journal that is never written, and the one that recovers from it.
        failing = _Failing()
        failing.answers = (False, False)
        monkeypatch.setattr(machine, "ledger", failing)
        intended: list[Change] = []

        async def intend(change: Change) -> None:
            intended.append(change)

        monkeypatch.setattr(failing, "intend", intend)
        with pytest.raises(CommandRefused, match="no"):
            await vm.disks.move("disk0", tmp_path / "moved.qcow2")
        monkeypatch.setattr(machine, "execute", real)
        assert intended[-1].sure and "moved.qcow2" not in {it.name for it in _files(tmp_path)}
        async with machine.changing:
            assert await recover(machine, intended[-1]) == known
        await nothing_left(vm)
        await write(vm, "disk0", 0, 1)
    await holds(spec.disks[0].file, "qcow2", {0: 1})


async def _up(supervisor: Supervisor, spec: MachineSpec) -> Kept:
    kept = await supervisor.ensure(spec, restart="never", paused=True)
    await kept.until(lambda: kept.vm is not None and kept.record.change is None)
    return kept


async def _wrote(kept: Kept, expected: dict[int, int], block: int) -> None:
    assert kept.vm is not None
    expected[block] = block % 250 + 1
    await write(kept.vm, "disk0", block, expected[block])


async def _dies(last: int, victims: str, *words: object) -> bool:
    argv = [sys.executable, "-c", PROGRAM, *map(str, (*words, last, victims))]
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    if done.stdout == b"done\n":
        return False
    assert done.returncode == -signal.SIGKILL, done.stderr
    return True


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())
