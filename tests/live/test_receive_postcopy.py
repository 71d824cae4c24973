"""Kept machines that run with another supervisor before their memory is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit import Round, postcopy
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, lab
from tests.live.migrating import counting
from tests.live.receiving import door, end_both, other, runs_on, told
from tests.live.relay import BY_RELAY, LARGE, phases
from tests.sizes import QEMU_VERSIONS

pytestmark = pytest.mark.live

AT_ONCE = postcopy(after=0)


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_there_and_back(qemu: str, places: Places, tmp_path: Path) -> None:
    seen: list[Round] = []
    async with leaks():
        async with (
            lab() as here,
            other() as there,
            door(tmp_path / "there", there.receive) as to,
            door(tmp_path / "here", here.receive) as back,
        ):
            kept = await here.ensure(counting(qemu, tmp_path, memory=LARGE), restart="never")
            had = await runs_on(kept, 0)
            took = await here.migrate(
                "mover", to=to, policy=AT_ONCE, options=BY_RELAY, progress=seen.append
            )
            assert 0 < took.downtime < took.seconds
            moved = there.kept["mover"]
            had = await runs_on(moved, had)
            assert not here.kept and len(places.qemus()) == 1
            assert moved.record.rest is None and moved.record.arrived and moved.end is None
            assert await told(there, "mover")
            await there.migrate("mover", to=back, policy="postcopy")
            await runs_on(here.kept["mover"], had)
        await end_both()
    assert phases(seen) == ["precopy", "postcopy"]
