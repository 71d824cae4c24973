"""What the tests of kept machines share: directories of their own, and their end."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from qmpkit import Kept, Supervisor
from qmpkit.process.entries import entries_in
from qmpkit.process.identity import boot_id
from qmpkit.process.roots import JOURNAL
from qmpkit.testing.leaks import living_with
from tests.live.counting import counted

__all__ = ["Places", "boot_of_the_past", "count", "end_all", "kill", "lab"]


@attrs.frozen
class Places:
    """The directories of one test."""

    state: Path
    runtime: Path

    @property
    def journal(self) -> Path:
        """The journal of the supervisor "lab"."""
        return self.state / "lab" / JOURNAL

    def records(self) -> dict[str, bytes]:
        """What is in it, by the machines' names."""
        return entries_in(self.journal)

    def qemus(self) -> list[int]:
        """The living QEMUs that were started under these directories."""
        return [
            pid
            for pid in living_with(f"QMPKIT_RUNTIME_DIR={self.runtime}")
            if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]


@asynccontextmanager
async def lab(*, starts: int | None = None) -> AsyncIterator[Supervisor]:
    async with Supervisor("lab", keep=True, starts=starts) as supervisor:
        yield supervisor


def kill(pid: int) -> None:
    """SIGKILL, and wait for the end."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], 60)[0]
    finally:
        os.close(pidfd)


async def end_all() -> None:
    """Stop and forget all that the supervisor has."""
    async with lab() as supervisor:
        async with trio.open_nursery() as nursery:
            for name in supervisor.kept:
                nursery.start_soon(supervisor.declare, name, "stopped")
        for name in supervisor.kept:
            await supervisor.forget(name)


async def count(kept: Kept) -> int:
    """kvm-tiny's counter in guest memory."""
    assert kept.vm is not None
    return await counted(kept.vm)


def boot_of_the_past(places: Places) -> None:
    """Make what is on record older than the host's last boot."""
    text = places.journal.read_text()
    places.journal.write_text(text.replace(boot_id(), "another-boot"))
