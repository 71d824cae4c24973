"""The seeds of a farm's machines, where they cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.farm import up
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.farm.farms import did, farm
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


async def test_a_place_that_takes_no_seeds_is_told_and_keeps_up_nobody_else(state: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        (state / "seeds").symlink_to("nowhere")
        outcome = await up(supervisor, farm(a={"cloud_init": {"user": "me"}}, b={}))
        assert did(outcome) == {"a": "failed", "b": "added"}
        assert f"cannot write {state}/seeds" in outcome.machines["a"].why
