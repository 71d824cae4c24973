"""Kept machines whose memory follows them to another host, and a cable that is pulled meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trustme

from qmpkit import (
    Kept,
    MigrationOptions,
    MigrationUnknown,
    Round,
    Supervisor,
    Whereabouts,
    move_place,
    postcopy,
)
from qmpkit.operations.migration.place import MovePlace
from qmpkit.operations.migration.remote_rest import RemoteRest
from qmpkit.operations.migration.silence import SILENCE
from qmpkit.testing import guests
from qmpkit.testing.leaks import living_with
from tests.live.kept import Places, end_all, kill, lab
from tests.live.migrating import counting
from tests.live.other_host import FAR, OtherHost, certificates, machines_there, other_host, receiver
from tests.live.receiving import runs_on
from tests.live.relay import phases
from tests.sizes import LONG, NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.bound(240),
    pytest.mark.skipif(not LONG, reason="a minute and more of waiting for who is silent: --long"),
]

WITHIN = 60.0
GIVES_UP = SILENCE + WITHIN + 25.0  # seconds from the pull, in which both sides have
HUGE = "4194832KiB"  # of zero pages, which are more bytes than a socket holds; an odd size
AT_ONCE = postcopy(after=0)


@attrs.define
class Move:
    """One that is about to begin; `had`: how far its guest has counted; `ran`: it runs there."""

    host: OtherHost
    here: Supervisor
    kept: Kept
    to: MovePlace
    had: int
    ran: trio.Event
    pulled_at: float = 0.0
    seen: list[Round] = attrs.field(factory=list)

    async def go(self) -> None:
        options = MigrationOptions(
            way="tcp",
            tls=self.to.tls,
            max_bandwidth="512KiB",
            downtime=0.001,
            recover_within=WITHIN,
        )
        await self.here.migrate(
            "mover", to=self.to, policy=AT_ONCE, options=options, progress=self.seen.append
        )

    async def pulled(self) -> None:
        """Pull the cable as soon as it runs there."""
        await self.ran.wait()
        self.host.cable("down")
        self.pulled_at = trio.current_time()


@asynccontextmanager
async def moving(qemu: str, folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Move]:
    """A machine that is about to move to another host."""
    ran, run = trio.Event(), RemoteRest.run

    async def told_to(rest: RemoteRest) -> float | None:
        when = await run(rest)
        ran.set()
        return when

    patch.setattr(RemoteRest, "run", told_to)
    ca = trustme.CA()
    allowed = [folder, Path(qemu).parent.parent, guests.build_kvm_tiny().parent]
    with other_host() as host:
        theirs = certificates(folder / "theirs", ca, host.address)
        ours = certificates(folder / "ours", ca, "here.example")
        async with lab() as here:
            spec = counting(qemu, folder, memory=HUGE)
            kept = await here.ensure(spec, restart="never")
            had = await runs_on(kept, 0)
            async with receiver(host, theirs, *allowed) as url:
                yield Move(host, here, kept, move_place(url, ours), had, ran)
        await end_all()


async def _until_there(deadline: float, wanted: str) -> None:
    with trio.fail_at(deadline):
        while await machines_there() != [wanted]:  # noqa: ASYNC110
            await trio.sleep(0.2)


async def _runs_on_there(places: Places, had: int) -> None:
    """Its guest counts and writes, by a supervisor of ours in the place of the daemon there."""
    for pid in living_with(f"QMPKIT_RUNTIME_DIR={places.runtime}"):
        command = await trio.Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"serve" in command.split(b"\0"):
            await trio.to_thread.run_sync(kill, pid)
    async with Supervisor(FAR, keep=True) as there:
        kept = there.kept["mover"]
        await kept.wait_running()
        assert kept.end is None
        await runs_on(kept, had)
        await there.declare("mover", "stopped")
        await there.forget("mover")


async def test_the_cable_is_in_again_in_time(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory goes on by itself, and the guest has lost nothing."""
    async with moving(qemu, tmp_path, monkeypatch) as move:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move.go)
            await move.pulled()
            await trio.sleep(45)
            assert len(places.qemus()) == 2
            move.host.cable("up")
            await _until_there(trio.current_time() + 60, "mover running")
        assert not move.here.kept and len(places.qemus()) == 1
        assert phases(move.seen) == ["precopy", "postcopy"]
        await _runs_on_there(places, move.had)


async def test_the_cable_stays_out(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever; who was to have it is asked later, and knows what came of it."""
    async with moving(qemu, tmp_path, monkeypatch) as move:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move.pulled)
            with pytest.raises(MigrationUnknown, match="--settle"):
                await move.go()
        assert WITHIN < trio.current_time() - move.pulled_at < GIVES_UP
        await _until_there(move.pulled_at + GIVES_UP, "mover gone")
        assert places.qemus() == [move.kept.pid]
        move.host.cable("up")
        assert await move.here.settle("mover") is Whereabouts.THERE
        assert not move.here.kept and not places.qemus()
