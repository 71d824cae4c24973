"""Fifty machines under one supervisor: up, doing something, down, and nothing left."""

from __future__ import annotations

import attrs
import pytest
import trio

import qmpkit
from qmpkit import ExitCause, Supervisor
from qmpkit.testing.leaks import leaks
from tests.sizes import LONG, NEWEST, TINY_BOOTED, TINY_PAUSED

pytestmark = [
    pytest.mark.live,
    pytest.mark.alone,
    pytest.mark.bound(700),
    pytest.mark.qemus(*NEWEST),
]

# A guest under TCG takes a core: fifty at once boot for minutes on two.
BOOT_WITHIN = 500.0 if LONG else 60.0
POWERDOWN_GRACE = 120.0 if LONG else 30.0


async def test_fifty_tiny_machines(qemu: str) -> None:
    tiny = attrs.evolve(qmpkit.load_profile("tiny"), qemu=qemu, accel="tcg")
    vms: dict[str, qmpkit.VM] = {}
    async with leaks():
        async with Supervisor("farm", powerdown_grace=POWERDOWN_GRACE) as farm:
            with farm.subscribe() as happenings, trio.fail_after(BOOT_WITHIN):
                async with trio.open_nursery() as nursery:
                    for number in range(TINY_BOOTED):
                        spec = attrs.evolve(tiny, name=f"booted{number}")
                        nursery.start_soon(_boot, farm, spec, vms)
                    for number in range(TINY_PAUSED):
                        spec = attrs.evolve(tiny, name=f"paused{number}")
                        nursery.start_soon(_start_paused, farm, spec, vms)
            counted = [row.state for row in farm.table()]
            assert counted.count("running") == TINY_BOOTED
            assert counted.count("paused") == TINY_PAUSED
            await _all_answer(vms)
        seen = [happening async for happening in happenings]
    assert [it.sequence for it in seen] == list(range(len(seen)))
    _check_ends(vms)


async def _boot(farm: Supervisor, spec: qmpkit.MachineSpec, vms: dict[str, qmpkit.VM]) -> None:
    vm = vms[spec.name] = await farm.start(spec)
    await vm.agent.wait_ready()
    echo = await vm.agent.run(["echo", vm.name])
    assert echo.stdout.decode().strip() == vm.name  # every agent is on its own machine's line


async def _start_paused(
    farm: Supervisor, spec: qmpkit.MachineSpec, vms: dict[str, qmpkit.VM]
) -> None:
    vms[spec.name] = await farm.start(spec, paused=True)


async def _all_answer(vms: dict[str, qmpkit.VM]) -> None:
    """All at once, and each for itself."""

    async def ask(vm: qmpkit.VM) -> None:
        status = await vm.execute("query-status")
        assert status["running"] is vm.name.startswith("booted")
        assert (await vm.execute("query-name"))["name"] == vm.name

    async with trio.open_nursery() as nursery:
        for vm in vms.values():
            nursery.start_soon(ask, vm)


def _check_ends(vms: dict[str, qmpkit.VM]) -> None:
    assert len(vms) == TINY_BOOTED + TINY_PAUSED
    for name, vm in vms.items():
        assert vm.report is not None
        # The running ones were asked and have obeyed; those that stand still were not asked.
        obeyed = ExitCause.GUEST_SHUTDOWN
        assert vm.report.cause is (obeyed if name.startswith("booted") else ExitCause.HOST_QUIT)
        assert vm.report.status.success
