"""A supervisor over real guests: deaths, stops and restarts of real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import ExitCause, MachineSpec, State, Supervisor
from qmpkit.testing.leaks import leaks
from tests.sizes import NEWEST

pytestmark = pytest.mark.live


@pytest.fixture
def bare(qemu: str) -> MachineSpec:
    """A machine without a guest."""
    return MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")


async def test_a_killed_machine_is_reported_and_can_be_started_again(bare: MachineSpec) -> None:
    async with leaks(), Supervisor("lab") as lab:
        victim, sibling = [
            await lab.start(attrs.evolve(bare, name=name)) for name in ("victim", "sibling")
        ]
        with lab.subscribe() as happenings:
            os.kill(victim.pid, signal.SIGKILL)
            report = await victim.wait()
            happening = await anext(happenings)
        assert report.cause is ExitCause.KILLED
        assert (happening.machine, happening.state) == ("victim", "gone")
        assert happening.cause.startswith("QEMU was killed from outside (killed by SIGKILL) after")
        again = await lab.start(attrs.evolve(bare, name="victim"))
        assert again.pid != victim.pid
        assert {vm.name for vm in lab.machines.values()} == {"victim", "sibling"}
        assert sibling.state is State.RUNNING


async def test_a_failed_start_among_others(bare: MachineSpec) -> None:
    broken = attrs.evolve(bare, name="broken", extra_args=["-device", "no-such-device"])
    async with leaks(), Supervisor("lab") as lab:

        async def fail() -> None:
            with pytest.raises(qmpkit.LaunchFailed, match="machine 'broken' did not start"):
                await lab.start(broken)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            for number in range(3):
                nursery.start_soon(lab.start, attrs.evolve(bare, name=f"vm{number}"))
        rows = {row.machine: row for row in lab.table()}
        assert [rows[f"vm{number}"].state for number in range(3)] == ["running"] * 3
        assert rows["broken"].state == "failed"
        assert "'no-such-device' is not a valid device model name" in rows["broken"].cause


@pytest.mark.alone
@pytest.mark.qemus(*NEWEST)
async def test_guests_power_down_together_and_the_deaf_are_ended(
    qemu: str, bare: MachineSpec, tmp_path: Path
) -> None:
    grace = 2.0
    tiny = attrs.evolve(qmpkit.load_profile("tiny"), name="willing", qemu=qemu, accel="tcg")
    async with leaks():
        async with Supervisor("lab", powerdown_grace=grace, logs=tmp_path) as lab:
            willing = await lab.start(tiny)
            deaf = await lab.start(attrs.evolve(bare, name="deaf"))  # a BIOS without a disk
            await willing.console.expect("tiny# ")
            begun = trio.current_time()
        took = trio.current_time() - begun
    assert willing.report is not None and deaf.report is not None
    assert willing.report.cause is ExitCause.GUEST_SHUTDOWN
    assert deaf.report.cause is ExitCause.HOST_QUIT
    assert grace <= took < grace + 2
    assert b"qmpkit tiny guest ready" in (tmp_path / "willing" / "serial0.log").read_bytes()
