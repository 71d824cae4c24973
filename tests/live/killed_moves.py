"""Moves to another supervisor in which one of the two is killed, at one step after another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from qmpkit import MigrationFailed, MigrationUnknown, Supervisor
from qmpkit.supervisor.kept import Kept
from tests.live.commands import said
from tests.live.dying import STEPS, dies
from tests.live.kept import Places, lab
from tests.live.receiving import door, one_left, other, runs_on
from tests.sizes import MOVE_KILLS

__all__ = ["SOURCE", "with_dying_destination", "with_dying_source"]

_EVERY = 1 if MOVE_KILLS > 50 else 30

Look = Callable[[Kept, bool], Awaitable[None]]
"""Looks at the machine after each try, and is told whether it is at its destination."""

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
        await lab.migrate("mover", to=words[0])
        print("done", flush=True)

trio.run(main)
"""
)
_DESTINATION = (
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


async def with_dying_source(places: Places, path: Path, had: int, look: Look, program: str) -> int:
    """Move "mover" by *program* until it is there; how often its supervisor has died."""
    last, is_there, deaths = 1, False, 0
    while not is_there:
        async with other() as there, door(path, there.receive) as to:
            died = await dies(program, to, last=last)
            last, deaths = last + _EVERY, deaths + died
            async with lab() as here:
                is_there = await one_left(places, here, there) is there
                kept = (there if is_there else here).kept["mover"]
                had = await runs_on(kept, had)
                assert kept.record.leaving is None
                await look(kept, is_there)
        assert is_there or died
    return deaths


async def with_dying_destination(
    places: Places, path: Path, here: Supervisor, look: Look, **how: Any
) -> None:
    """Move "mover" until it is there, whose supervisor dies; *how*: as `migrate` takes it."""
    kept, last, is_there = here.kept["mover"], 1, False
    had = await runs_on(kept, 0)
    while not is_there:
        async with _another_program(path, last):
            with suppress(MigrationUnknown):
                try:
                    await here.migrate("mover", to=f"unix:{path}", **how)
                except MigrationFailed:
                    had = await runs_on(kept, had)
        last += _EVERY
        async with other() as there, door(path, there.receive):
            if "mover" in here.kept and kept.record.leaving is not None:
                await here.settle("mover")
            is_there = "mover" in there.kept
            assert is_there is ("mover" not in here.kept)
            now = (there if is_there else here).kept["mover"]
            had = await runs_on(now, had)
            assert len(places.qemus()) == 1
            await look(now, is_there)


@asynccontextmanager
async def _another_program(path: Path, last: int) -> AsyncIterator[None]:
    command = [sys.executable, "-c", _DESTINATION, str(path), str(last), "supervisor"]
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
