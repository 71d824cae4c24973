"""A source that QEMU has forgotten: its migration has failed, and its guest is not run again.

QEMU 10.0 whose connection breaks while it switches to postcopy, before it has sent the devices,
gives up in the status "device".  It says so on its stderr alone ("Unknown ending state"), and its
guest stands in "finish-migrate", where `cont` is refused.  Its images it has taken again.  What
runs a guest without asking for that is the debugger's "continue", for which a debugger that
was set up before (`-gdb`) is given up.  Such a QEMU neither migrates again nor is saved, nor takes
a device, for it thinks that it migrates.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from qmpkit.errors import HostLacks
from qmpkit.machine.machine import Machine
from qmpkit.machine.saved_state import MAIMED, is_stuck
from qmpkit.machine.state import State
from qmpkit.operations.steps import STEP_GRACE
from qmpkit.process.rundir import machine_dir, socket_path

__all__ = ["unstuck"]

log = logging.getLogger("qmpkit.operations")

_MOMENT = 0.25
"""Seconds in which a migration that fails as others do says so."""

_CONTINUE = b"$c#63"  # with its checksum: a packet of GDB's remote protocol


async def unstuck(source: Machine) -> None:
    """Have its guest run, if it is one of those; else nothing is done."""
    with source.subscribe("MIGRATION") as changes:
        if not await _is_stuck(source):
            return
        with trio.move_on_after(_MOMENT):
            await changes.next()
    if not await _is_stuck(source):
        return
    source.maimed = MAIMED
    try:
        async with machine_dir(source.name) as folder:
            await _continue(source, socket_path(folder, "gdb"))
    except (HostLacks, OSError) as error:
        log.warning("machine %r stands still, and cannot be helped: %s", source.name, error)


async def _is_stuck(source: Machine) -> bool:
    return is_stuck(await source.execute("query-migrate"))


async def _continue(source: Machine, path: Path) -> None:
    words = str(path).replace(",", ",,").replace("\\", "\\\\").replace('"', '\\"')
    await _debugger(source, f'"unix:{words},server=on,wait=off"')
    try:
        with source.expecting(State.RUNNING, State.SUSPENDED) as runs:
            async with await trio.open_unix_socket(path) as gdb:
                await gdb.send_all(_CONTINUE)
                await runs.wait()
    finally:
        with trio.move_on_after(STEP_GRACE, shield=True):
            await _debugger(source, "none")


async def _debugger(source: Machine, where: str) -> None:
    await source.execute("human-monitor-command", {"command-line": f"gdbserver {where}"})
