"""A move to another supervisor in which one of the two, or a QEMU, is killed at any step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qmpkit import MachineDied, MigrationFailed, MigrationUnknown
from qmpkit.testing.leaks import leaks
from tests.live.commands import said
from tests.live.dying import STEPS
from tests.live.kept import Places, end_all, lab
from tests.live.migrating import SLOW, counting
from tests.live.receiving import door, end_both, one_left, other, runs_on
from tests.sizes import MIGRATIONS_KILLED, MOVE_KILLS, NEWEST

__all__ = ["EVERY", "SOURCE", "another_program"]

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

EVERY = 1 if MOVE_KILLS > 50 else 30

# What a move asks of its QEMU, its entries in the journal, its words to the other side.
SOURCE = (
    STEPS
    + """
step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.kept:Kept", "write")
step("qmpkit.operations.migration.wire:Wire", "ask")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        qemu, armed = lab.kept["mover"].pid, True
        await lab.migrate("mover", to=words[0], policy=POLICY)
        print("done", flush=True)

trio.run(main)
"""
)
DESTINATION = (
    STEPS
    + """
step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.kept:Kept", "write")
step("qmpkit.process.kept:KeptChild", "keep")

async def main():
    global armed
    async with qmpkit.Supervisor("other", keep=True) as other:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(words[0])
        sock.listen(5)
        armed = True
        print("ready", file=sys.stderr, flush=True)
        await trio.serve_listeners(other.receive, [trio.SocketListener(sock)])

trio.run(main)
"""
)


@pytest.mark.bound(120 + 60 * MOVE_KILLS)
@pytest.mark.parametrize("policy", MIGRATIONS_KILLED)
async def test_the_source_dies_between_any_two_steps(
    qemu: str, places: Places, tmp_path: Path, policy: str
) -> None:
    program = SOURCE.replace("POLICY", repr(policy))
    async with leaks():
        async with lab() as here:
            had = await runs_on(await here.ensure(counting(qemu, tmp_path), restart="never"), 0)
        last, is_there, deaths = 1, False, 0
        while not is_there:
            async with other() as there, door(tmp_path / "door", there.receive) as to:
                command = [sys.executable, "-c", program, to, str(last), "supervisor"]
                done = await trio.run_process(command, capture_stdout=True, check=False)
                last, deaths = last + EVERY, deaths + (done.returncode != 0)
                async with lab() as here:
                    is_there = await one_left(places, here, there) is there
                    kept = (there if is_there else here).kept["mover"]
                    had = await runs_on(kept, had)
                    assert kept.record.leaving is None and kept.end is None
            assert is_there or done.returncode
        assert deaths
        await end_both()


@asynccontextmanager
async def another_program(path: Path, last: int) -> AsyncIterator[None]:
    command = [sys.executable, "-c", DESTINATION, str(path), str(last), "supervisor"]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    try:
        await said(process, "ready")
        yield
    finally:
        with trio.move_on_after(10, shield=True):
            if process.returncode is None:
                process.terminate()
            await process.wait()
        assert process.stderr is not None
        await process.stderr.aclose()
        await trio.Path(path).unlink(missing_ok=True)


@pytest.mark.bound(120 + 60 * MOVE_KILLS)
async def test_the_destination_dies_between_any_two_steps(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    """Before it is told to run nothing is left there; afterwards the next one finds it."""
    path = tmp_path / "door"
    async with leaks():
        async with lab() as here:
            kept = await here.ensure(counting(qemu, tmp_path), restart="never")
            had, last, is_there, unknown = await runs_on(kept, 0), 1, False, 0
            while not is_there:
                async with another_program(path, last):
                    try:
                        await here.migrate("mover", to=f"unix:{path}")
                    except MigrationFailed:
                        had = await runs_on(kept, had)
                    except MigrationUnknown:
                        unknown += 1
                last += EVERY
                async with other() as there, door(path, there.receive):
                    if "mover" in here.kept and kept.record.leaving is not None:
                        await here.settle("mover")
                    is_there = "mover" in there.kept
                    assert is_there is ("mover" not in here.kept)
                    had = await runs_on((there if is_there else here).kept["mover"], had)
                    assert len(places.qemus()) == 1
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
