"""The directories of disks that are to be made: `disks/` beside farm.toml needs no mkdir."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from qmpkit.spec.farm import FarmMachine

__all__ = ["made_folders"]


@asynccontextmanager
async def made_folders(machines: Iterable[FarmMachine]) -> AsyncIterator[None]:
    """Make each directory that is missing for a disk with `make`; gone again if the block fails.

    Only the last step of its path: one that is wrong from further up is a fault to be told.
    """
    wanted = {
        Path(disk.file).parent
        for machine in machines
        for disk in machine.spec.disks
        if disk.make is not None and "\0" not in os.fspath(disk.file)
    }
    made = await trio.to_thread.run_sync(_make, wanted)
    try:
        yield
    except BaseException:
        for folder in made:  # one system call each
            with suppress(OSError):
                folder.rmdir()
        raise


def _make(folders: Iterable[Path]) -> list[Path]:
    made = []
    for folder in folders:
        with suppress(OSError):  # what cannot be made is told as what is missing
            folder.mkdir()
            made.append(folder)
    return made
