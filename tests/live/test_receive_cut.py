"""A move to another supervisor whose conversation breaks off: the guest is here or there, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qmpkit import MigrationFailed, MigrationUnknown, SpecInvalid, State, Whereabouts
from qmpkit.operations.migration.local_end import LocalEnd
from qmpkit.supervisor.moves import arriving
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, kill, lab
from tests.live.migrating import counting
from tests.live.receiving import Cut, door, end_both, one_left, other, runs_on, told
from tests.sizes import LONG, MOVE_CANCELS, MOVE_CUTS, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


async def test_cut_before_the_decision_it_stays(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks():
        async with lab() as here, other() as there:
            kept = await here.ensure(counting(qemu, tmp_path), restart="never")
            had, pid = await runs_on(kept, 0), kept.pid
            for number, (word, passes) in enumerate(MOVE_CUTS):
                cut = Cut(there.receive, word, passes=passes)
                async with door(tmp_path / f"d{number}", cut) as to:
                    with pytest.raises(MigrationFailed):
                        await here.migrate("mover", to=to)
                assert cut.has_cut
                had = await runs_on(kept, had)
                assert await one_left(places, here, there) is here
                assert (kept.pid, kept.record.leaving) == (pid, None)
                assert [it.name for it in (places.runtime / "other").iterdir()] == [".state"]
        await end_both()


async def test_a_lost_answer_is_asked_for_again(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks():
        async with lab() as here, other() as there:
            kept = await here.ensure(counting(qemu, tmp_path), restart="never")
            had = await runs_on(kept, 0)
            never_asked = Cut(there.receive, "run", passes=False)
            async with door(tmp_path / "one", never_asked) as to:
                with pytest.raises(MigrationFailed, match="closed the connection"):
                    await here.migrate("mover", to=to)
            had = await runs_on(kept, had)
            assert never_asked.has_cut and not there.kept and len(places.qemus()) == 1
            never_heard = Cut(there.receive, "run", passes=True)
            async with door(tmp_path / "two", never_heard) as to:
                await here.migrate("mover", to=to)
            assert never_heard.has_cut and not here.kept and len(places.qemus()) == 1
            await runs_on(there.kept["mover"], had)
        await end_both()


@pytest.mark.parametrize("runs_there", [True, False])
async def test_what_nobody_can_tell_is_settled_later(
    qemu: str, places: Places, tmp_path: Path, runs_there: bool
) -> None:
    """Neither a restart policy nor an order starts it here meanwhile, also after its end."""
    path = tmp_path / "door"
    async with leaks():
        async with lab() as here, other() as there:
            kept = await here.ensure(counting(qemu, tmp_path), restart="always")
            had = await runs_on(kept, 0)
            cut = Cut(there.receive, "run", passes=runs_there, deaf=True)
            async with door(path, cut) as to:
                with pytest.raises(MigrationUnknown, match="--settle"):
                    await here.migrate("mover", to=to)
                assert cut.has_cut and kept.vm is not None and kept.vm.state is State.PAUSED
                assert await here.settle("mover") is Whereabouts.UNKNOWN
                assert "unknown" in await told(here, "mover")
                with pytest.raises(SpecInvalid, match="nobody knows yet"):
                    await here.declare("mover", "running")
                with pytest.raises(SpecInvalid, match="nobody knows yet"):
                    await here.migrate("mover", to=to)
                kill(kept.pid or 0)
                await kept.until(lambda: kept.state == "unknown")
                assert kept.pid not in places.qemus()
        async with lab() as here:
            assert here.kept["mover"].state == "unknown"
            stranger = f"unix:{tmp_path / 'stranger'}"
            async with other() as there, door(path, there.receive):
                async with door(tmp_path / "stranger", here.receive):  # does not know of it
                    assert await here.settle("mover", to=stranger) is Whereabouts.UNKNOWN
                found = await here.settle("mover")
                assert found is (Whereabouts.THERE if runs_there else Whereabouts.HERE)
                if runs_there:
                    assert not here.kept and "migrated" in await told(here, "mover")
                    await runs_on(there.kept["mover"], had)
                else:
                    await here.kept["mover"].wait_running()  # by its policy, from its disks
                    assert not there.kept and "stayed" in await told(here, "mover")
                assert len(places.qemus()) == 1
        await end_both()


async def test_a_destination_that_hangs_is_not_taken_for_one_that_runs(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: object, runs: bool) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(LocalEnd, "run", hangs)
    monkeypatch.setattr(arriving, "STEP_GRACE", 0.5)
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path), restart="never")
            had = await runs_on(kept, 0)
            with pytest.raises(MigrationUnknown, match=r"has not answered for 1\.5 s"):
                await here.migrate("mover", to=to)
            assert await one_left(places, here, there) is here
            assert await here.settle("mover") is Whereabouts.UNKNOWN
            assert await here.settle("mover", here=True) is Whereabouts.HERE
            await runs_on(kept, had)
        await end_both()


@pytest.mark.bound(1200 if LONG else 120)
async def test_cancelled_anywhere_one_machine_is_left(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    async with leaks():
        async with lab() as here, other() as there:
            kept = await here.ensure(counting(qemu, tmp_path), restart="never")
            had = await runs_on(kept, 0)
            async with (
                door(tmp_path / "there", there.receive) as to,
                door(tmp_path / "here", here.receive) as back,
            ):

                async def move() -> None:
                    await here.migrate("mover", to=to)

                async def after() -> None:
                    nonlocal had
                    await one_left(places, here, there)
                    if there.kept:
                        had = await runs_on(there.kept["mover"], had)
                        assert not here.kept
                        await there.migrate("mover", to=back)
                    assert await one_left(places, here, there) is here
                    had = await runs_on(here.kept["mover"], had)
                    assert here.kept["mover"].record.leaving is None

                await cancel_at_every_checkpoint(move, every=MOVE_CANCELS, after=after)
        await end_both()
