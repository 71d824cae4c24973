"""What is declared of a machine that is not simply up: each call ends, and says how it went."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from qmpkit.errors import GuestRefused, HostLacks
from qmpkit.supervisor.kept import Kept
from qmpkit.testing.fake import FakeQemu
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


async def _stopped_for_its_disk(kept: Kept, qemu: FakeQemu) -> None:
    qemu.status = "io-error"
    qemu.emit("BLOCK_IO_ERROR", {"action": "stop", "reason": "No space left on device"})
    qemu.emit("STOP")
    await kept.until(lambda: kept.state == "failed")


async def test_one_that_its_disk_has_stopped_is_let_run_again() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        await _stopped_for_its_disk(kept, ground["a"].qemu)
        with trio.fail_after(5):
            await supervisor.declare("a", "paused")
            assert kept.state == "failed", "its vCPUs stand as they are"
            await supervisor.declare("a", "running")
            assert kept.state == "running"
            await _stopped_for_its_disk(kept, ground["a"].qemu)
            assert await supervisor.ensure(spec("a")) is kept
            assert kept.state == "running"


async def test_one_that_its_disk_stops_at_once_again_keeps_nobody_waiting() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        qemu = ground["a"].qemu

        def cont(_: object) -> object:
            for name, data in (("RESUME", {}), ("BLOCK_IO_ERROR", {"action": "stop"})):
                qemu.emit(name, data)
            return {}

        qemu.on("cont", cont)
        await _stopped_for_its_disk(kept, qemu)
        with trio.fail_after(5):
            for _ in range(20):
                with suppress(HostLacks):  # else it has been seen to run
                    await supervisor.declare("a", "running")
                await kept.until(lambda: kept.state == "failed")
            await supervisor.declare("a", "stopped")


async def test_a_guest_that_sleeps_runs_and_cannot_be_paused_by_every_qemu() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        qemu = ground["a"].qemu
        qemu.status = "suspended"
        qemu.emit("SUSPEND")
        await kept.until(lambda: kept.state == "suspended")
        with trio.fail_after(5):
            await supervisor.declare("a", "running")
            with pytest.raises(GuestRefused, match="it sleeps"):
                await supervisor.declare("a", "paused")
            await supervisor.ensure(spec("a"))
            assert kept.state == "suspended"


async def test_of_a_start_that_was_cancelled_it_is_said_so() -> None:
    """Of one that is on record stays what is said; trio's own words mean nothing to anybody."""
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        await supervisor.declare("a", "stopped")
        with trio.CancelScope() as scope:
            ground.prepare = lambda fake: scope.cancel()
            await supervisor.ensure(spec("a"))
        assert scope.cancelled_caught
        assert (kept.state, supervisor.table()[0].cause) == ("failed", "the start was cancelled")
