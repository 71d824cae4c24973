"""Kept machines whose guest runs in its new process before its memory is there."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs
import pytest
import trio

from qmpkit import MigrationFailed, MigrationLost, MigrationOptions, postcopy
from qmpkit.supervisor.policy import Mishap
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, end_all, kill, lab
from tests.live.migrating import SLOW, counting
from tests.live.receiving import runs_on
from tests.live.relay import BY_RELAY, LARGE, Relay
from tests.live.test_migration_kept import names_in
from tests.sizes import LONG, NEWEST, OLDEST, POSTCOPY_DEATHS, POSTCOPY_STOPS

pytestmark = pytest.mark.live

AT_ONCE = postcopy(after=0)
# A supervisor that dies when its machine's guest runs in the heir, or when that is cut off.
PROGRAM = """
import os, signal, sys, qmpkit, trio
from qmpkit.operations.migration.local_end import LocalRest
from qmpkit.operations.migration.postcopy import Postcopy

def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def cut_off(self):
    await self._both_are_cut()
    die()

async def main():
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        machine, cutting = lab.kept["mover"].vm.machine, sys.argv[1] == "cut"
        Postcopy._try_again = cut_off
        runs, run = trio.Event(), LocalRest.run
        async def ran(rest):
            await run(rest)
            runs.set()
        LocalRest.run = ran
        async def cut():
            await runs.wait()
            await machine.execute("migrate-pause", {}, oob=True)
        async with trio.open_nursery() as nursery:
            def told(now):
                if now.phase == "postcopy":
                    die() if not cutting else None
            if cutting:
                nursery.start_soon(cut)
            options = qmpkit.MigrationOptions(max_bandwidth="1MiB", downtime=0.001)
            policy = qmpkit.postcopy(after=0)
            await lab.migrate("mover", policy=policy, options=options, progress=told)
            print("it was over", flush=True)

trio.run(main)
"""


# One whose machine's connection is cut as it sends its devices, and that dies before it helps.
CUT_PROGRAM = """
import os, signal, qmpkit, trio
from qmpkit.machine.machine import Machine
from qmpkit.operations.migration import moving

real = Machine.execute

async def execute(self, command, *args, **options):
    if command == "migrate-continue":  # it waits, and notices nothing before it goes on
        await real(self, "yank", {"instances": [{"type": "migration"}]})
    return await real(self, command, *args, **options)

async def die(_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    Machine.execute, moving.unstuck = execute, die
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        options = qmpkit.MigrationOptions(way="unix", max_bandwidth="1MiB", downtime=0.001)
        await lab.migrate("mover", policy=qmpkit.postcopy(after=0), options=options)

trio.run(main)
"""


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Relay:
    return Relay(monkeypatch)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch, relay: Relay) -> trio.Event:
    """Set when the guest runs in its new process; its memory does not follow then."""
    return relay.held_ahead(monkeypatch)


@pytest.mark.parametrize("how", POSTCOPY_DEATHS)
async def test_whoever_supervises_next_has_the_rest_come(
    qemu: str, how: str, places: Places, tmp_path: Path
) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path, memory=LARGE))
            had, pid = await runs_on(kept, 0), kept.pid
        command = [sys.executable, "-c", PROGRAM, how]
        done = await trio.run_process(command, capture_stdout=True, check=False)
        assert (done.returncode, done.stdout) == (-9, b"")
        assert len(places.qemus()) == 2
        async with lab() as supervisor:
            kept = supervisor.kept["mover"]
            assert kept.state == "migrating"  # nobody else waits for it
            await runs_on(kept, had)
            assert kept.pid != pid and kept.record.heir is None and kept.end is None
            assert len(places.qemus()) == 1
            assert len(names_in(places.runtime / "lab")) == 2
        await end_all()


@pytest.mark.qemus(*NEWEST)
async def test_whoever_supervises_next_has_a_source_go_on_that_has_not_switched(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    """QEMU 10.0 holds it for ever, as a rule: see `unstuck`."""
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path, memory=LARGE))
            had, pid = await runs_on(kept, 0), kept.pid
        command = [sys.executable, "-c", CUT_PROGRAM]
        done = await trio.run_process(command, capture_stderr=True, check=False)
        assert done.returncode == -9, done.stderr.decode()
        async with lab() as supervisor:
            kept = supervisor.kept["mover"]
            await runs_on(kept, had)
            assert kept.pid == pid and places.qemus() == [pid]
        await end_all()


@pytest.mark.qemus(*OLDEST)
async def test_a_guest_that_is_lost_is_started_again(
    qemu: str, places: Places, tmp_path: Path, ahead: trio.Event
) -> None:
    async def kill_heir() -> None:
        await ahead.wait()
        heir = kept.record.heir
        assert heir is not None
        await trio.to_thread.run_sync(kill, heir.identity.pid)

    spec = counting(qemu, tmp_path, memory=LARGE)
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, restart="on-failure")
            await runs_on(kept, 0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill_heir)
                with pytest.raises(MigrationLost, match="part of its memory was at each end"):
                    await supervisor.migrate("mover", policy=AT_ONCE, options=BY_RELAY)
            await runs_on(kept, 0)
            assert kept.end is not None and kept.end.cause is Mishap.LOST
            assert len(places.qemus()) == 1
        await end_all()


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("when", POSTCOPY_STOPS)
async def test_a_machine_that_moves_can_be_stopped_at_once(
    qemu: str, when: str, places: Places, tmp_path: Path, ahead: trio.Event
) -> None:
    async def stop() -> None:
        await (ahead if when == "after" else begun).wait()
        await supervisor.declare("mover", "stopped", powerdown_grace=0)

    options = attrs.evolve(BY_RELAY if when == "after" else SLOW, finish_within=1000)
    policy = AT_ONCE if when == "after" else "live"
    begun = trio.Event()
    error = MigrationLost if when == "after" else MigrationFailed
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path, memory=LARGE))
            await runs_on(kept, 0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop)
                with pytest.raises(error):
                    await supervisor.migrate(
                        "mover", policy=policy, options=options, progress=lambda _: begun.set()
                    )
            assert kept.declared == "stopped" and places.qemus() == []
        await end_all()


@pytest.mark.skipif(not LONG, reason="it is the same with a machine that is not kept: with --long")
async def test_it_goes_to_another_process(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(counting(qemu, tmp_path, memory=LARGE))
            had = await runs_on(kept, 0)
            for way in ("fd", "unix", "tcp"):
                options = MigrationOptions(way=way)
                await supervisor.migrate("mover", policy="postcopy", options=options)
                had = await runs_on(kept, had)
            assert len(places.qemus()) == 1
        await end_all()
