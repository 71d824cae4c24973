"""Machines that move to another supervisor, or another host, with their disks."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trustme

from qmpkit import CannotMigrate, MigrationFailed, Step, move_place
from qmpkit.supervisor.kept import Kept
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks
from tests.live.blocks import holds, nothing_left, write
from tests.live.kept import Places, lab
from tests.live.killed_moves import SOURCE, with_dying_destination, with_dying_source
from tests.live.migrating import counting
from tests.live.other_host import certificates, other_host, receiver
from tests.live.receiving import Cut, door, end_both, one_left, other, runs_on
from tests.live.test_migration_disks import NEVER, folder, names_in
from tests.sizes import DISK_CUTS, LONG, MOVE_KILLS, NEWEST, OLDEST

pytestmark = pytest.mark.live


@pytest.mark.qemus(*OLDEST)
async def test_to_another_supervisor(qemu: str, places: Places, tmp_path: Path) -> None:
    new, backup = folder(tmp_path / "new"), tmp_path / "backup"
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path))
            had = await runs_on(kept, 0)
            assert kept.vm is not None
            await kept.vm.snapshots.take("one")
            await kept.vm.backups.run(backup)
            await write(kept.vm, "disk0", 5, 9)
            with pytest.raises(MigrationFailed, match="enough"):
                await here.migrate(
                    "mover",
                    to=to,
                    disks=new,
                    policy=lambda _: Step(give_up="enough"),
                    options=NEVER,
                )
            assert await one_left(places, here, there) is here and names_in(new) == []
            had = await runs_on(kept, had)
            await nothing_left(kept.vm)
            await here.migrate("mover", to=to, disks=new)
            moved = there.kept["mover"]
            await runs_on(moved, had)
            assert moved.vm is not None and moved.record.change is None
            assert {Path(disk.file).parent for disk in moved.spec.disks} == {new}
            layers = [Path(it.file) for it in await moved.vm.disks.chain("disk0")]
            assert layers[1:] == [tmp_path / "qcow2.img"]
            await moved.vm.backups.run(backup, mode="incremental", compare=True)
            await nothing_left(moved.vm)
            with pytest.raises(CannotMigrate, match="exists already"):
                await there.migrate("mover", to=to, disks=new)
        await end_both()
    await holds(str(layers[0]), "qcow2", {1: 6, 5: 9})


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize(("word", "passes"), DISK_CUTS)
async def test_cut_with_its_disks_on_their_way(
    qemu: str, places: Places, tmp_path: Path, word: str, passes: bool
) -> None:
    new = folder(tmp_path / "new")
    async with leaks():
        async with lab() as here, other() as there:
            kept = await here.ensure(counting(qemu, tmp_path), restart="never")
            had = await runs_on(kept, 0)
            cut = Cut(there.receive, word, passes=passes)
            async with door(tmp_path / "d", cut) as to:
                with pytest.raises(MigrationFailed):
                    await here.migrate("mover", to=to, disks=new)
            assert cut.has_cut
            await runs_on(kept, had)
            assert await one_left(places, here, there) is here
            assert kept.record.change is None and kept.vm is not None
            with trio.fail_after(10):
                while names_in(new):  # noqa: ASYNC110  # it may hear of it a moment later
                    await trio.sleep(0.02)
            await nothing_left(kept.vm)
        await end_both()


@pytest.mark.qemus(*NEWEST)
async def test_to_another_host(qemu: str, places: Places, tmp_path: Path) -> None:
    """By TLS, and into folders alone that are allowed there."""
    new, ca = folder(tmp_path / "new"), trustme.CA()
    elsewhere = folder(tmp_path / "elsewhere")
    with other_host() as host:
        theirs = certificates(tmp_path / "theirs", ca, host.address)
        ours = certificates(tmp_path / "ours", ca, "here.example")
        allowed = [new, Path(qemu).parent.parent, guests.build_kvm_tiny().parent]
        async with lab() as here:
            kept = await here.ensure(counting(qemu, tmp_path))
            await runs_on(kept, 0)
            async with receiver(host, theirs, *allowed) as url:
                place = move_place(url, ours)
                faults = await here.migration_faults("mover", place, disks=elsewhere)
                assert len(faults) == 2 and all("allowed" in it.message for it in faults)
                took = await here.migrate("mover", to=place, disks=new)
                assert 0 < took.downtime < took.seconds and not here.kept
                assert len(places.qemus()) == 1
                assert names_in(new) == ["qcow2.img", "raw.img"] and names_in(elsewhere) == []
                for name, format in (("qcow2.img", "qcow2"), ("raw.img", "raw")):
                    await alike(tmp_path / name, new / name, format)


async def alike(old: Path, new: Path, format: str) -> None:
    """A machine that writes nothing has the new image open."""
    words = ["qemu-img", "compare", "-U", "-f", format, "-F", format, str(old), str(new)]
    done = await trio.run_process(words, capture_stdout=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not LONG, reason="minutes of deaths: with --long")
@pytest.mark.bound(120 + 60 * MOVE_KILLS)
@pytest.mark.qemus(*NEWEST)
async def test_the_destination_dies_between_any_two_steps(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    """Of images that were made for a machine that did not come, the next supervisor leaves none."""
    new = folder(tmp_path / "new")

    async def look(_: Kept, is_there: bool) -> None:
        assert names_in(new) == (["qcow2.img", "raw.img"] if is_there else [])

    async with leaks():
        async with lab() as here:
            await here.ensure(counting(qemu, tmp_path), restart="never")
            await with_dying_destination(places, tmp_path / "door", here, look, disks=new)
        await end_both()


@pytest.mark.skipif(not LONG, reason="minutes of deaths: with --long")
@pytest.mark.bound(120 + 60 * MOVE_KILLS)
@pytest.mark.qemus(*NEWEST)
async def test_the_source_dies_between_any_two_steps(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    """What it was mirroring is ended by the next, and the images are here or there."""
    new = folder(tmp_path / "new")
    program = SOURCE.replace("to=words[0]", f"to=words[0], disks={str(new)!r}")

    async def look(kept: Kept, is_there: bool) -> None:
        await kept.until(lambda: kept.record.change is None)
        assert kept.vm is not None
        await nothing_left(kept.vm)
        with trio.fail_after(10):
            while bool(names_in(new)) is not is_there:  # noqa: ASYNC110
                await trio.sleep(0.02)

    async with leaks():
        async with lab() as here:
            had = await runs_on(await here.ensure(counting(qemu, tmp_path), restart="never"), 0)
        await with_dying_source(places, tmp_path / "door", had, look, program)
        await end_both()
