"""Kept machines that run with another supervisor before their memory is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qmpkit import Kept, MigrationLost, MigrationOptions, Round, Supervisor, postcopy
from qmpkit.supervisor.moves.rest_here import RestHere
from qmpkit.supervisor.policy import Mishap
from qmpkit.testing.leaks import leaks
from tests.live.blocks import nothing_left
from tests.live.commands import said
from tests.live.kept import Places, kill, lab
from tests.live.migrating import counting
from tests.live.receiving import Cut, door, end_both, one_left, other, runs_on, told
from tests.live.relay import LARGE, phases
from tests.live.test_migration_disks import folder, names_in
from tests.sizes import LONG, NEWEST, REST_CUTS

pytestmark = pytest.mark.live

AT_ONCE = postcopy(after=0)
SLOW = MigrationOptions(way="unix", max_bandwidth="1MiB", downtime=0.001)  # seconds of memory


@asynccontextmanager
async def both_ends() -> AsyncIterator[tuple[Supervisor, Supervisor]]:
    async with leaks():
        async with lab() as here, other() as there:
            yield here, there
        await end_both()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Is set once a guest runs here before its memory is here."""
    event, run = trio.Event(), RestHere._run_guest

    async def told_to(rest: RestHere) -> None:
        await run(rest)
        event.set()

    monkeypatch.setattr(RestHere, "_run_guest", told_to)
    return event


async def cut_memory(kept: Kept, ran: trio.Event) -> None:
    """Once it runs there."""
    assert kept.vm is not None
    await ran.wait()
    await kept.vm.machine.execute("migrate-pause", {}, oob=True)


@pytest.mark.qemus(*NEWEST)
async def test_there_with_its_disks_and_back_without(
    qemu: str, places: Places, tmp_path: Path, ran: trio.Event
) -> None:
    """What the memory goes through is cut meanwhile, and mended."""
    seen: list[Round] = []
    new = folder(tmp_path / "new")
    async with (
        both_ends() as (here, there),
        door(tmp_path / "there", there.receive) as to,
        door(tmp_path / "here", here.receive) as back,
    ):
        kept = await here.ensure(counting(qemu, tmp_path, memory=LARGE), restart="never")
        had = await runs_on(kept, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_memory, kept, ran)
            took = await here.migrate(
                "mover", to=to, policy=AT_ONCE, options=SLOW, progress=seen.append, disks=new
            )
        assert 0 < took.downtime < took.seconds
        moved = there.kept["mover"]
        await moved.until(lambda: moved.tended)
        had = await runs_on(moved, had)
        assert not here.kept and len(places.qemus()) == 1
        assert moved.record.rest is None and moved.record.arrived and moved.end is None
        assert {"migrating", "received"} <= set(await told(there, "mover"))
        assert "migrated" in await told(here, "mover")
        assert {Path(disk.file).parent for disk in moved.spec.disks} == {new}
        assert moved.record.change is None and moved.vm is not None
        await nothing_left(moved.vm)
        await there.migrate("mover", to=back, policy="postcopy")
        await runs_on(here.kept["mover"], had)
    assert phases(seen) == ["precopy", "postcopy", "cut"]
    assert names_in(new) == ["qcow2.img", "raw.img"]


@pytest.mark.skipif(not LONG, reason="it is cut elsewhere too: with --long")
@pytest.mark.parametrize(("word", "passes"), REST_CUTS)
async def test_the_conversation_breaks_off(
    qemu: str, places: Places, tmp_path: Path, word: str, passes: bool
) -> None:
    """It is begun anew by the move's number, and the guest notices nothing."""
    async with both_ends() as (here, there):
        cut = Cut(there.receive, word, passes=passes)
        async with door(tmp_path / "there", cut) as to:
            kept = await here.ensure(counting(qemu, tmp_path, memory=LARGE), restart="never")
            had = await runs_on(kept, 0)
            await here.migrate("mover", to=to, policy=AT_ONCE, options=SLOW)
            assert cut.has_cut and not here.kept
            moved = there.kept["mover"]
            await moved.until(lambda: moved.tended)
            await runs_on(there.kept["mover"], had)
            assert len(places.qemus()) == 1


@pytest.mark.skipif(not LONG, reason="it is the same within one supervisor: with --long")
@pytest.mark.parametrize("victim", ["source", "destination"])
async def test_a_qemu_is_killed(
    qemu: str, places: Places, tmp_path: Path, victim: str, ran: trio.Event
) -> None:
    """It is the other supervisor's by then, and started again by its policy."""

    async def strike() -> None:
        await ran.wait()
        there_pid = there.kept["mover"].pid
        await trio.to_thread.run_sync(kill, (pid if victim == "source" else there_pid) or 0)

    async with both_ends() as (here, there), door(tmp_path / "there", there.receive) as to:
        kept = await here.ensure(counting(qemu, tmp_path, memory=LARGE), restart="on-failure")
        await runs_on(kept, 0)
        pid = kept.pid
        async with trio.open_nursery() as nursery:
            nursery.start_soon(strike)
            with pytest.raises(MigrationLost, match="as after a power cut") as lost:
                await here.migrate("mover", to=to, policy=AT_ONCE, options=SLOW)
        assert lost.value.place == to and not here.kept
        moved = there.kept["mover"]
        await moved.until(lambda: moved.tended)
        await runs_on(moved, 0)
        assert moved.end is not None and moved.end.cause is Mishap.LOST
        assert await one_left(places, here, there) is there


PROGRAM = """
import os, signal, sys, qmpkit, trio
from qmpkit.supervisor.moves.rest_here import RestHere
from qmpkit.operations.migration.remote_rest import RemoteRest

where, when, path = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dies(owner, name, *, before):
    real = getattr(owner, name)
    async def dying(*args, **kwargs):
        if before:
            die()
        await real(*args, **kwargs)
        die()
    setattr(owner, name, dying)

async def source():
    dies(RemoteRest, "run", before=when == "switched")
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        options = qmpkit.MigrationOptions(way="unix", max_bandwidth="1MiB", downtime=0.001)
        await lab.migrate("mover", to=path, policy=qmpkit.postcopy(after=0), options=options)

async def destination():
    dies(RestHere, "_run_guest", before=False) if when == "runs" else None
    dies(RestHere, "followed", before=True) if when == "switched" else None
    dies(RestHere, "_run_guest", before=True) if when == "written" else None
    async with qmpkit.Supervisor("other", keep=True) as other:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(path)
        sock.listen(5)
        print("ready", file=sys.stderr, flush=True)
        await trio.serve_listeners(other.receive, [trio.SocketListener(sock)])

trio.run(source if where == "source" else destination)
"""


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize("when", ["switched", "runs"] if LONG else ["runs"])
async def test_the_source_is_killed(qemu: str, places: Places, tmp_path: Path, when: str) -> None:
    """Whoever supervises there next has the rest of its memory come."""
    async with leaks():
        async with lab() as here:
            kept = await here.ensure(counting(qemu, tmp_path, memory=LARGE), restart="never")
            had = await runs_on(kept, 0)
        async with other() as there, door(tmp_path / "door", there.receive) as to:
            command = [sys.executable, "-c", PROGRAM, "source", when, to]
            done = await trio.run_process(command, capture_stdout=True, check=False)
            assert done.returncode == -9 and len(places.qemus()) == 2
            async with lab() as here:
                assert await one_left(places, here, there) is there
                moved = there.kept["mover"]
                await runs_on(moved, had)
                assert moved.end is None and moved.record.rest is None
        await end_both()


@pytest.mark.qemus(*NEWEST)
@pytest.mark.bound(240)
@pytest.mark.parametrize("when", ["switched", "written", "runs"] if LONG else ["switched"])
async def test_the_destination_is_killed(
    qemu: str, places: Places, tmp_path: Path, when: str
) -> None:
    """The source waits for the next one there, which finds the guest, and has it run."""
    path = tmp_path / "door"
    async with leaks():
        async with lab() as here:
            kept = await here.ensure(counting(qemu, tmp_path, memory=LARGE), restart="never")
            had = await runs_on(kept, 0)
            command = [sys.executable, "-c", PROGRAM, "destination", when, str(path)]
            process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
            await said(process, "ready")

            async def next_one(task_status: trio.TaskStatus[Supervisor]) -> None:
                assert await process.wait() == -9
                await trio.Path(path).unlink()
                async with other() as there, door(path, there.receive):
                    task_status.started(there)
                    await trio.sleep_forever()

            async with trio.open_nursery() as nursery:

                async def move() -> None:
                    to = f"unix:{path}"
                    await here.migrate("mover", to=to, policy=AT_ONCE, options=SLOW)

                nursery.start_soon(move)
                there = await nursery.start(next_one)
                assert await one_left(places, here, there) is there
                moved = there.kept["mover"]
                await runs_on(moved, had)
                assert moved.end is None and moved.record.rest is None
                nursery.cancel_scope.cancel()
            assert process.stderr is not None
            await process.stderr.aclose()
        await end_both()
