"""Kept machines that move with their disks, whose supervisor may be killed meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit import MigrationFailed, MigrationUnknown, Step
from qmpkit.supervisor.kept import Kept
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, nothing_left
from tests.live.dying import STEPS, dies
from tests.live.kept import Places, end_all, kill, lab
from tests.live.migrating import counting, dies_of_running
from tests.live.receiving import runs_on
from tests.live.test_migration_disks import NEVER, folder, names_in
from tests.sizes import KEPT_DISK_CANCELS, LONG, MOVED_DISK_KILLS, NEWEST, OLDEST

pytestmark = pytest.mark.live

KINDS = ("qcow2", "raw")


def files_of(kept: Kept) -> list[str]:
    return [disk.file for disk in kept.spec.disks]


async def settled(kept: Kept, folders: list[Path]) -> Path:
    """It has its disks in one of *folders*, and there are no others but those of before."""
    await kept.until(lambda: kept.vm is not None and kept.record.change is None)
    assert kept.record.heir is None and kept.vm is not None
    await nothing_left(kept.vm)
    assert not await kept.vm.execute("query-block-exports")
    (now,) = {Path(file).parent for file in files_of(kept)}
    assert now in folders
    return now


@pytest.mark.qemus(*NEWEST)
async def test_its_record_names_the_new_images(qemu: str, places: Places, tmp_path: Path) -> None:
    new = folder(tmp_path / "new")
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path))
            had = await runs_on(kept, 0)
            with pytest.raises(MigrationFailed, match="enough"):
                await supervisor.migrate(
                    "mover",
                    policy=lambda _: Step(give_up="enough"),
                    options=NEVER,
                    disks=new,
                )
            assert names_in(new) == [] and await settled(kept, [tmp_path]) == tmp_path
            had = await runs_on(kept, had)
            await supervisor.migrate("mover", disks=new)
            had = await runs_on(kept, had)
            assert await settled(kept, [new]) == new
        async with lab() as supervisor:
            kept = supervisor.kept["mover"]
            await runs_on(kept, had)
            assert kept.pid is not None
            pid = kept.pid
            kill(pid)
            await kept.until(lambda: kept.pid not in (None, pid))
            await runs_on(kept, 0)
            assert await settled(kept, [new]) == new
        await end_all()
    await holds(str(new / "qcow2.img"), "qcow2", {1: 6})


@pytest.mark.qemus(*OLDEST)
async def test_nobody_knows_whether_it_wrote(qemu: str, places: Places, tmp_path: Path) -> None:
    """It is started again on the new images, which have all that was ever written."""
    new = folder(tmp_path / "new")
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path))
            await runs_on(kept, 0)

            with pytest.MonkeyPatch.context() as patch:
                dies_of_running(patch)
                with pytest.raises(MigrationUnknown):
                    await supervisor.migrate("mover", disks=new)
            old = kept.pid
            await kept.until(lambda: kept.vm is not None and kept.pid != old)
            await runs_on(kept, 0)
            assert await settled(kept, [new]) == new
        await end_all()


@pytest.mark.bound(1200 if LONG else 120)
@pytest.mark.qemus(*OLDEST)
async def test_cancelled_anywhere_it_has_one_set_of_disks(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    two = [folder(tmp_path / "one"), folder(tmp_path / "two")]
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path), restart="never")
            had, now = await runs_on(kept, 0), tmp_path

            async def after() -> None:
                nonlocal had, now
                had = await runs_on(kept, had)
                now = await settled(kept, [now, _other(two, now)])
                _clear(two, now)
                assert len(places.qemus()) == 1

            async def move() -> None:
                await supervisor.migrate("mover", disks=_other(two, now))

            await cancel_at_every_checkpoint(move, every=KEPT_DISK_CANCELS, after=after)
        await end_all()


def _other(two: list[Path], now: Path) -> Path:
    return two[1] if now == two[0] else two[0]


def _clear(two: list[Path], now: Path) -> None:
    """The old images are for their owner to remove; of a move that failed there are none."""
    for place in two:
        for file in place.iterdir():
            if place != now:
                file.unlink()


PROGRAM = (
    STEPS
    + """
step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.kept:Kept", "write")
step("qmpkit.operations.migration.storage_there:NewImages", "make")
step("qmpkit.process.kept:KeptChild", "keep")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        qemu, armed = lab.kept["mover"].pid, True
        await lab.migrate("mover", disks=words[0])
        print("done", flush=True)

trio.run(main)
"""
)


@pytest.mark.bound(120 + 60 * MOVED_DISK_KILLS)
@pytest.mark.qemus(*NEWEST)
async def test_killed_between_any_two_steps(qemu: str, places: Places, tmp_path: Path) -> None:
    """One machine is left, with one set of disks, and no file that nobody needs."""
    two = [folder(tmp_path / "one"), folder(tmp_path / "two")]
    spec, now = counting(qemu, tmp_path), tmp_path
    every, last = (1, 3) if MOVED_DISK_KILLS > 50 else (100, 45)
    async with leaks():
        async with lab() as supervisor:
            had = await runs_on(await supervisor.ensure(spec, restart="never"), 0)
        begun = last
        while await dies(PROGRAM, str(place := _other(two, now)), last=last):
            last += every
            async with lab() as supervisor:
                kept = supervisor.kept["mover"]
                had = await runs_on(kept, had)
                before, now = now, await settled(kept, [now, place])
                assert now == place or names_in(place) == [], last
                if now != before:
                    _clear(two, now)
                assert kept.end is None and len(places.qemus()) == 1
        async with lab() as supervisor:
            await runs_on(supervisor.kept["mover"], had)
            assert await settled(supervisor.kept["mover"], two) == place
        assert last > begun
        await end_all()
