"""How a kept machine's ends are answered: by its policy, once, also by the next supervisor."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

import attrs
import pytest

from qmpkit.errors import MachineGone
from qmpkit.machine.report import ExitCause
from qmpkit.process.identity import Standing
from qmpkit.supervisor import gate
from qmpkit.supervisor.admission import Host
from qmpkit.supervisor.policy import Mishap
from qmpkit.testing.fake_kept import FakeKept, fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import AT_ONCE, lab, on_disk, put_on_disk

pytestmark = pytest.mark.usefixtures("state")


async def test_a_crash_is_answered_until_it_is_a_loop() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as supervisor:
            kept = await supervisor.ensure(spec("a"), restart=AT_ONCE)
            for number in range(4):
                await kept.until(lambda n=number: len(ground.started) == n + 1)  # type: ignore[misc]
                await kept.wait_running()
                ground["a"].end(signal.SIGSEGV)
                await kept.until(lambda: kept.state != "running")
            await kept.wait_rest()
            assert kept.state == "crash-loop"
            assert "after it was restarted 3 times within 600 s" in kept.cause
            with pytest.raises(MachineGone, match="reaching the state running"):
                await kept.wait_running()
        async with lab(ground) as second:
            kept = second.kept["a"]
            await kept.wait_rest()
            assert kept.state == "crash-loop", "also for the next supervisor"
            await second.declare("a", "stopped")
        async with lab(ground) as third:
            kept = third.kept["a"]
            await kept.wait_rest()
            assert kept.state == "gone"
            await third.declare("a", "running")
            assert kept.state == "running"
            ground["a"].end(signal.SIGSEGV)
            await kept.until(lambda: len(ground.started) == 6 and kept.state == "running")
            assert len(kept.record.history.restarts) == 1, "it was forgiven"


async def test_starts_that_fail_are_a_loop_too() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"), restart=AT_ONCE)
        ground.prepare = lambda fake: fake.end(1)
        ground["a"].end(signal.SIGSEGV)
        await kept.wait_rest()
        assert (kept.state, len(ground.started)) == ("crash-loop", 4)
        assert kept.end is not None
        assert kept.end.cause is Mishap.START_FAILED


async def test_a_host_that_has_nothing_left_for_a_start_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a descriptor neither the host can be looked at, nor a machine be started."""
    lacks = OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def nothing(pages: object) -> Host:
        raise lacks

    monkeypatch.setattr(gate, "LOOK_EVERY", 0.05)
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"), restart=AT_ONCE)
        with monkeypatch.context() as patch:
            patch.setattr(supervisor._kept_machines()._gate, "_host", nothing)
            ground["a"].end(signal.SIGKILL)
            await kept.until(lambda: "what this host has: Too many open files" in kept.cause)
        failures = 0

        def fail_twice(fake: FakeKept) -> None:
            nonlocal failures
            failures += 1
            if failures < 3:
                raise lacks

        ground.prepare = fail_twice
        await kept.wait_running()
        assert (failures, kept.tended) == (3, True)


async def test_a_restart_is_decided_on_once(state: Path) -> None:
    policy = attrs.evolve(AT_ONCE, delay=1000.0, max_delay=1000.0, jitter=0.5)
    async with fake_ground() as ground:
        async with lab(ground) as first:
            kept = await first.ensure(spec("a"), restart=policy)
            ground["a"].end(signal.SIGSEGV)
            await kept.until(lambda: kept.state == "restarting")
        before = on_disk(state, "a")
        async with lab(ground) as second:
            assert second.kept["a"].state == "restarting"
        assert on_disk(state, "a") == before
        before["history"]["due"] -= 2000
        put_on_disk(state, "a", before)
        async with lab(ground) as third:
            await third.kept["a"].wait_running()
            assert len(third.kept["a"].record.history.restarts) == 1


async def test_a_panic_is_a_failure() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"), restart=AT_ONCE)
        ground["a"].qemu.guest_panic()
        await kept.until(lambda: len(ground.started) == 2 and kept.state == "running")
        assert kept.end is not None
        assert kept.end.cause is ExitCause.GUEST_PANIC


@pytest.mark.parametrize(
    "standing", [Standing.GONE, Standing.REUSED, Standing.ZOMBIE], ids=lambda s: s.name
)
async def test_one_that_vanished_is_told_of(standing: Standing) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"), restart="never")
        ground["a"].standing = standing
        ground["a"].end(signal.SIGKILL)
        async with lab(ground) as second:
            kept = second.kept["a"]
            await kept.wait_rest()
            assert (kept.state, kept.pid) == ("gone", None)
            assert kept.cause == f"QEMU vanished while nobody looked: {standing.value}"


async def test_an_interrupted_start_is_finished_whatever_the_policy(state: Path) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"), restart="never")
        ground["a"].end(signal.SIGKILL)
        record = on_disk(state, "a") | {"phase": "starting"}
        put_on_disk(state, "a", record)
        async with lab(ground) as second:
            await second.kept["a"].wait_running()
        assert len(ground.started) == 2


async def test_an_interrupted_stop_is_finished(state: Path) -> None:
    async with fake_ground() as ground:
        async with lab(ground) as first:
            await first.ensure(spec("a"), restart="always")
        record = on_disk(state, "a") | {"declared": "stopped"}
        put_on_disk(state, "a", record)
        async with lab(ground) as second:
            kept = second.kept["a"]
            await kept.wait_rest()
            assert kept.end is not None
            assert kept.end.cause is ExitCause.HOST_QUIT
        assert ground.alive == []


async def test_a_stop_while_it_waits_for_its_restart() -> None:
    policy = attrs.evolve(AT_ONCE, delay=1000.0, max_delay=1000.0)
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"), restart=policy)
        ground["a"].end(signal.SIGSEGV)
        await kept.until(lambda: kept.state == "restarting")
        # Counted from its end, which was a moment ago.
        assert re.search(r"it starts again in (1000\.0|99\d\.\d) s$", kept.cause)
        await supervisor.declare("a", "stopped")
        assert (kept.state, len(ground.started)) == ("gone", 1)
    async with fake_ground() as again, lab(again) as supervisor:
        await supervisor.kept["a"].wait_rest()
        assert (supervisor.kept["a"].state, again.started) == ("gone", [])
