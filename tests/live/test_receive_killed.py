"""A move to another supervisor in which one of the two, or a QEMU, is killed at any step."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from qmpkit import MachineDied, MigrationFailed
from qmpkit.supervisor.kept import Kept
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, end_all, lab
from tests.live.killed_moves import SOURCE, with_dying_destination, with_dying_source
from tests.live.migrating import SLOW, counting
from tests.live.receiving import door, end_both, one_left, other, runs_on
from tests.sizes import MIGRATIONS_KILLED, MOVE_KILLS, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


@pytest.mark.bound(120 + 60 * MOVE_KILLS)
@pytest.mark.parametrize("policy", MIGRATIONS_KILLED)
async def test_the_source_dies_between_any_two_steps(
    qemu: str, places: Places, tmp_path: Path, policy: str
) -> None:
    program = SOURCE.replace("to=words[0]", f"to=words[0], policy={policy!r}")

    async def look(kept: Kept, _: bool) -> None:
        assert kept.end is None

    async with leaks():
        async with lab() as here:
            had = await runs_on(await here.ensure(counting(qemu, tmp_path), restart="never"), 0)
        assert await with_dying_source(places, tmp_path / "door", had, look, program)
        await end_both()


@pytest.mark.bound(120 + 60 * MOVE_KILLS)
async def test_the_destination_dies_between_any_two_steps(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    """Before it is told to run nothing is left there; afterwards the next one finds it."""

    async def look(kept: Kept, _: bool) -> None:
        assert kept.record.leaving is None

    async with leaks():
        async with lab() as here:
            await here.ensure(counting(qemu, tmp_path), restart="never")
            await with_dying_destination(places, tmp_path / "door", here, look)
        await end_both()


@pytest.mark.parametrize("victim", ["source", "destination"])
async def test_a_qemu_is_killed(qemu: str, places: Places, tmp_path: Path, victim: str) -> None:
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path), restart="always")
            had, pid = await runs_on(kept, 0), kept.pid

            def strike(_: object) -> None:
                for it in places.qemus():
                    if (it == pid) is (victim == "source"):
                        os.kill(it, signal.SIGKILL)

            with pytest.raises((MigrationFailed, MachineDied)):
                await here.migrate("mover", to=to, options=SLOW, progress=strike)
            await runs_on(kept, 0 if victim == "source" else had)
            assert await one_left(places, here, there) is here
            assert kept.record.leaving is None
        await end_all()
