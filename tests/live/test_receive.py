"""Kept machines that move from one supervisor to another."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qmpkit import CannotMigrate, MigrationFailed, MigrationOptions, Step, UserNic
from qmpkit.supervisor import gate
from qmpkit.supervisor.admission import Demand
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, lab
from tests.live.migrating import SLOW, counting
from tests.live.receiving import door, end_both, one_left, other, runs_on, told
from tests.sizes import LONG, OLDEST

pytestmark = [pytest.mark.live, *([] if LONG else [pytest.mark.qemus(*OLDEST)])]


async def test_there_and_back(qemu: str, places: Places, tmp_path: Path) -> None:
    """It takes along all that is said of it, and leaves nothing behind."""
    spec = counting(qemu, tmp_path, nics=[UserNic(forwards=["0:22"])])
    async with leaks():
        async with (
            lab() as here,
            other() as there,
            door(tmp_path / "there", there.receive) as to,
            door(tmp_path / "here", here.receive) as back,
        ):
            kept = await here.ensure(spec, restart="always", health="qmp")
            had, record, pid = await runs_on(kept, 0), kept.record, kept.pid
            assert kept.vm is not None
            ports = await kept.vm.forwards()
            assert await here.migration_faults("mover", to) == ()
            took = await here.migrate("mover", to=to)
            assert 0 < took.downtime < took.seconds
            assert list(here.kept) == [] and not kept.tended
            moved = there.kept["mover"]
            had = await runs_on(moved, had)
            assert moved.vm is not None and await moved.vm.forwards() == ports
            assert (moved.restart, moved.record.health) == (record.restart, record.health)
            assert (moved.spec, moved.record.asked) == (record.spec, record.asked)
            assert len(places.qemus()) == 1 and pid not in places.qemus()
            assert [it.name for it in places.runtime.joinpath("lab").iterdir()] == [".state"]
            assert not places.records()
            assert "migrated" in await told(here, "mover")
            assert "received" in await told(there, "mover")
            options = MigrationOptions(way="unix", channels=2)
            await there.migrate("mover", to=back, options=options)
            had = await runs_on(here.kept["mover"], had)
        async with lab() as here:
            await runs_on(here.kept["mover"], had)
        await end_both()


async def test_what_does_not_move_stays(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path))
            had, pid = await runs_on(kept, 0), kept.pid
            with pytest.raises(CannotMigrate, match="nobody waits") as nobody:
                await here.migrate("mover", to="unix:/no/socket")
            assert await here.migration_faults("mover", "unix:/no/socket") == nobody.value.faults
            with pytest.raises(MigrationFailed, match="enough"):
                await here.migrate(
                    "mover", to=to, policy=lambda _: Step(give_up="enough"), options=SLOW
                )
            had = await runs_on(kept, had)
            with trio.CancelScope() as scope:
                await here.migrate("mover", to=to, options=SLOW, progress=lambda _: scope.cancel())
            assert scope.cancelled_caught
            had = await runs_on(kept, had)
            taken = await there.ensure(counting(qemu, tmp_path, disks=[]))
            raw = trio.Path(tmp_path / "raw.img")
            await raw.rename(tmp_path / "gone")
            with pytest.raises(CannotMigrate) as cannot:
                await here.migrate("mover", to=to)
            faults = [str(it) for it in cannot.value.faults]
            assert sum("does not exist" in it for it in faults) == 2
            assert any("there is a machine 'mover' here" in it for it in faults)
            assert tuple(faults) == tuple(map(str, await here.migration_faults("mover", to)))
            await trio.Path(tmp_path / "gone").rename(raw)
            assert taken.tended
            await runs_on(kept, had)
            assert (kept.pid, kept.record.leaving) == (pid, None) and len(places.qemus()) == 2
        await end_both()


async def test_a_guest_that_stands_still_does_so_there(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path))
            had = await runs_on(kept, 0)
            await here.declare("mover", "paused")
            took = await here.migrate("mover", to=to)
            moved = there.kept["mover"]
            await moved.until(lambda: moved.state == "paused")
            assert took.downtime == 0 and moved.declared == "paused"
            await there.declare("mover", "running")
            await runs_on(moved, had)
        await end_both()


async def test_where_there_is_no_room_it_does_not_go(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path))
            had = await runs_on(kept, 0)
            with monkeypatch.context() as patched:
                patched.setattr(gate, "demand_of", lambda _: Demand(memory=1 << 60))
                with pytest.raises(CannotMigrate, match=r"at unix:.*does not fit on this host"):
                    await here.migrate("mover", to=to)
            assert await one_left(places, here, there) is here
            await runs_on(kept, had)
        await end_both()
