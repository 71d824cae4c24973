"""`cpu.pin = "auto"` of a kept machine: a wish on record, decided on anew by each start."""

from __future__ import annotations

import json

import attrs
import pytest

import qmpkit
from qmpkit import Cpu
from tests.live.kept import Places, end_all, lab
from tests.live.test_tune import EVERY, bare, sitting
from tests.sizes import NEWEST

pytestmark = pytest.mark.live


@pytest.mark.qemus(*NEWEST)
async def test_each_start_decides_anew(qemu: str, places: Places) -> None:
    async with lab() as first:
        kept = await first.ensure(bare(qemu, cpu=Cpu(1, pin="auto")), wait=True)
        assert kept.vm is not None
        before = (await sitting(kept.vm))["vcpu0"]
        assert kept.vm.spec.cpu.pin == (before,)
        ran = kept.vm.spec
        assert kept.spec == attrs.evolve(
            ran,
            cpu=attrs.evolve(ran.cpu, pin="auto"),
            resources=attrs.evolve(ran.resources, emulator=None),
        )
    (record,) = places.records().values()
    assert json.loads(record)["spec"]["cpu"]["pin"] == "auto"
    async with lab() as second:
        kept = second.kept["bare"]
        await kept.wait_running()
        assert kept.vm is not None
        assert kept.vm.spec == ran, "the machine that was found again sits where it was put"
        await second.declare("bare", "stopped")
        crowd = bare(qemu, name="crowd", cpu=Cpu(8, pin=before))
        async with qmpkit.running(crowd, paused=True):
            await second.declare("bare", "running")
            assert kept.vm is not None
            after = (await sitting(kept.vm))["vcpu0"]
        assert kept.vm.spec.cpu.pin == (after,)
        assert (after != before) == (len(EVERY) > 1)
    await end_all()
