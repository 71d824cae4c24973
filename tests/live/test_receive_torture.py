"""A guest that writes all the time moves between two supervisors, and either is killed."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from qmpkit import VM, Disk, Supervisor
from qmpkit.supervisor.kept import Kept
from qmpkit.testing.leaks import leaks
from tests.live.commands import said
from tests.live.kept import Places
from tests.live.ledger_guest import begin, ledger_spec, records, whole
from tests.live.receiving import door, end_both, one_left
from tests.sizes import LEDGER_KILLS, QEMU_VERSIONS

pytestmark = pytest.mark.live

NAMES = ("lab", "other")

# Has a door, and moves the machine to another one when there is one.
PROGRAM = """
import sys, qmpkit, trio
from tests.live.receiving import door

name, path, *to = sys.argv[1:]

async def main():
    async with qmpkit.Supervisor(name, keep=True) as mine, door(path, mine.receive):
        print("open", file=sys.stderr, flush=True)
        for place in to:
            try:
                await mine.migrate("ledger", to=place)
            except qmpkit.QmpkitError as error:
                print(error, file=sys.stderr)
            print("over", file=sys.stderr, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.skipif(not LEDGER_KILLS, reason="many minutes of moves: with --long")
@pytest.mark.bound(300 + 60 * LEDGER_KILLS)
@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_either_supervisor_is_killed(qemu: str, places: Places, tmp_path: Path) -> None:
    """In the midst of moves, at random; one QEMU is left, which one of the next two has."""
    dice, had, at = random.Random(7), 0, NAMES[0]
    disk = Disk(str(tmp_path / "disk.qcow2"), format="qcow2", make="64MiB")
    async with leaks():
        async with Supervisor(at, keep=True) as here:
            kept = await here.ensure(attrs.evolve(ledger_spec(qemu), disks=[disk]))
            await begin(_up(kept))
        for _ in range(LEDGER_KILLS):
            there = NAMES[NAMES.index(at) - 1]
            await _killed(dice, at, there, tmp_path)
            async with _both_open(tmp_path, there, at) as both:
                one = await one_left(places, *both)
                at, kept = one.name, one.kept["ledger"]
                await kept.wait_running()
                had = await whole(_up(kept), had)
        await end_both()
    assert await records(Path(disk.file)) >= had


def _up(kept: Kept) -> VM:
    assert kept.vm is not None and kept.end is None
    return kept.vm


async def _killed(dice: random.Random, source: str, destination: str, folder: Path) -> None:
    """Begin a move, and kill one side in it; the other when it has had time to say so."""
    async with AsyncExitStack() as stack:
        doors = {name: str(folder / name) for name in NAMES}
        there = await stack.enter_async_context(_program(destination, doors[destination]))
        await said(there, "open")
        to = f"unix:{doors[destination]}"
        here = await stack.enter_async_context(_program(source, doors[source], to))
        await said(here, "open")
        await trio.sleep(dice.random() * 1.5)
        victim = dice.choice([here, there])
        victim.kill()
        with trio.move_on_after(dice.random() * 3):
            if victim is there:
                await said(here, "over")
            await trio.sleep_forever()


@asynccontextmanager
async def _program(name: str, path: str, *to: str) -> AsyncIterator[trio.Process]:
    """A supervisor of its own, which is killed at the block's end."""
    command = [sys.executable, "-c", PROGRAM, name, path, *to]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        with trio.move_on_after(10, shield=True):
            process.kill()
            await process.wait()
        assert process.stderr is not None
        await process.stderr.aclose()
        await trio.Path(path).unlink(missing_ok=True)


@asynccontextmanager
async def _both_open(folder: Path, *names: str) -> AsyncIterator[list[Supervisor]]:
    """The destination first: the source asks it at once, and then every half a minute."""
    async with AsyncExitStack() as stack:
        opened = []
        for name in names:
            supervisor = await stack.enter_async_context(Supervisor(name, keep=True))
            await stack.enter_async_context(door(folder / name, supervisor.receive))
            opened.append(supervisor)
        yield opened
