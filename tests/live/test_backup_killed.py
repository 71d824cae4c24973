"""Whoever is killed in a backup or a prune: what was complete restores, and the next one works."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import trio

import qmpkit
from qmpkit import MachineSpec, Supervisor, backups
from qmpkit.supervisor.kept import Kept
from qmpkit.testing.leaks import leaks
from tests.live.backup_folders import files_needed, files_there, make_first_older, points_in
from tests.live.blocks import bare, holds, nothing_left, write
from tests.live.dying import STEPS
from tests.live.kept import Places, end_all, lab
from tests.sizes import BACKUP_KILLS, LONG, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

BACKUP_STEPS, PRUNE_STEPS = 24, 8  # that there are at least; even, see `_spread`

# The steps are what is asked of QEMU, entries in the journal, files and manifests written.
BEGIN = (
    STEPS
    + """
(folder,) = words

step("qmpkit.backups.repository:Repository", "seal")
"""
)

BACKUP = (
    BEGIN
    + """
step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.ledger:KeptLedger", "intend")
step("qmpkit.supervisor.ledger:KeptLedger", "settle")
step("qmpkit.operations.block.backup", "formatted")
step("qmpkit.operations.block.backup", "digest_of")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        kept = lab.kept["bare"]
        qemu, vm, armed = kept.pid, kept.vm, True
        await vm.backups.run(folder, compare=COMPARE)
        print("done", flush=True)

trio.run(main)
"""
)

PRUNE = (
    BEGIN
    + """
import qmpkit.backups.pruning
step("qmpkit.backups.repository:Repository", "without")
for name in ("copied", "digest_of", "run_qemu_img", "_merge"):
    step("qmpkit.backups.pruning", name)

real = qmpkit.backups.pruning._replace
def replace(*args):
    global count
    if count >= 2 * last - 2:
        die()
    real(*args)
    count += 2
    if count >= 2 * last - 2:
        die()
qmpkit.backups.pruning._replace = replace

async def main():
    global armed
    armed = True
    await qmpkit.backups.prune(folder, **eval(victims))
    print("done", flush=True)

trio.run(main)
"""
)


PULL = """
import os, signal, sys, qmpkit, trio

async def main():
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        async with lab.kept["bare"].vm.backups.pulling(sys.argv[1], checkpoint="one"):
            os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


@pytest.mark.bound(60 + 10 * BACKUP_KILLS)
@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("compare", [False, True] if LONG else [False])
async def test_killed_between_any_two_steps_of_a_backup(
    qemu: str, places: Places, tmp_path: Path, compare: bool
) -> None:
    program = BACKUP.replace("COMPARE", str(compare))
    folder, expected = tmp_path / "backups", dict[int, int]()
    spec = bare(qemu, tmp_path, "qcow2")
    async with leaks():
        for number in range(BACKUP_KILLS):
            async with lab() as supervisor:
                kept = await _up(supervisor, spec)
                await _wrote(kept, expected, number)
            before = len(await points_in(folder))
            victims = "supervisor" if number % 2 else "both"
            # The first late in the first backup, whose folder nobody else knows.
            last = _spread(BACKUP_KILLS - 1 - number, BACKUP_STEPS)
            died = await _dies(program, folder, last, victims)
            assert died or LONG, "all of CI's moments are in a backup"
            if points := await points_in(folder):
                had = dict(expected)
                if len(points) == before:  # it has not come so far
                    del had[number]
                await _restores(folder, had)
            async with lab() as supervisor:
                kept = await _up(supervisor, spec)
                assert kept.vm is not None and kept.record.change is None
                await nothing_left(kept.vm)
                point = await kept.vm.backups.run(folder)
                assert point.number == len(points) + 1
            await _restores(folder, expected)
            assert files_there(folder) == files_needed(await backups.points(folder))
        assert await backups.verify(folder) == ()
        await end_all()


@pytest.mark.usefixtures("places")
async def test_what_a_supervisor_served_ends_at_the_adoption(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    async with lab() as supervisor:
        await _up(supervisor, bare(qemu, tmp_path, "qcow2"))
    assert await _dies(PULL, tmp_path / "pull", 0, "")
    async with lab() as supervisor:
        kept = await _up(supervisor, bare(qemu, tmp_path, "qcow2"))
        assert kept.vm is not None
        assert await kept.vm.execute("query-block-exports") == []
        await nothing_left(kept.vm)
        await kept.vm.backups.drop_checkpoint("one")
        async with kept.vm.backups.pulling(tmp_path / "pull", checkpoint="one"):
            pass
    assert not (tmp_path / "pull").exists()
    await end_all()


@pytest.mark.bound(60 + 10 * BACKUP_KILLS)
async def test_killed_between_any_two_steps_of_a_prune(qemu: str, tmp_path: Path) -> None:
    folder, expected = tmp_path / "backups", dict[int, int]()
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        for number in range((BACKUP_KILLS + 1) // 2):
            while len(await points_in(folder)) < 4:
                block = len(expected)
                expected[block] = block % 250 + 1
                await write(vm, "disk0", block, expected[block])
                await vm.backups.run(folder)
            # The one merges down to the first point, the other down to nothing.
            last, daily = (2, 0) if number % 2 else (0, 2)
            policy = f"dict(keep_last={last}, daily={daily})"
            make_first_older(folder)
            died = await _dies(PRUNE, folder, _spread(number, PRUNE_STEPS), policy)
            assert died or LONG, "all of CI's moments are in a prune"
            assert await backups.verify(folder) == ()
            for point in await backups.points(folder):
                had = dict(list(expected.items())[: point.number])
                await _restores(folder, had, point.number)
            await backups.prune(folder, keep_last=last, daily=daily)
            points = await backups.points(folder)
            assert len(points) == 2
            assert files_there(folder) == files_needed(points)
            await _restores(folder, expected)


def _spread(number: int, steps: int) -> int:
    """The step to die at: all, with each of the victims, with --long, else some far apart."""
    if LONG:
        return 1 + number % (steps + 5)  # an odd number, and past the end
    return 1 + (2 * number + 1) * steps // (2 * BACKUP_KILLS)


async def _up(supervisor: Supervisor, spec: MachineSpec) -> Kept:
    kept = await supervisor.ensure(spec, restart="never", paused=True)
    await kept.until(lambda: kept.vm is not None and kept.record.change is None)
    return kept


async def _wrote(kept: Kept, expected: dict[int, int], block: int) -> None:
    assert kept.vm is not None
    expected[block] = block % 250 + 1
    await write(kept.vm, "disk0", block, expected[block])


async def _dies(program: str, folder: Path, last: int, victims: str) -> bool:
    argv = [sys.executable, "-c", program, str(folder), str(last), victims]
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    if done.stdout == b"done\n":
        return False
    assert done.returncode == -signal.SIGKILL, done.stderr
    return True


async def _restores(folder: Path, expected: dict[int, int], point: int | None = None) -> None:
    target = await backups.restore(
        folder, "disk0", folder.parent / "back.raw", point=point, format="raw"
    )
    await holds(str(target), "raw", {**expected, len(expected): 0})
    target.unlink()
