"""Kept machines that move to another host: its network, its command, and TLS in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trustme

from qmpkit import (
    CannotMigrate,
    Kept,
    MigrationFailed,
    MigrationOptions,
    Round,
    Supervisor,
    move_place,
    postcopy,
)
from qmpkit.testing import guests
from tests.live.kept import Places, end_all, lab
from tests.live.migrating import SLOW, counting
from tests.live.other_host import certificates, machines_there, other_host, receiver
from tests.live.receiving import runs_on
from tests.live.relay import LARGE, phases
from tests.sizes import LONG, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


def _allowed(qemu: str, folder: Path) -> list[Path]:
    return [folder, Path(qemu).parent.parent, guests.build_kvm_tiny().parent]


async def _stays(here: Supervisor, kept: Kept, had: int, to: str, tls: Path, why: str) -> int:
    with pytest.raises(CannotMigrate, match=why):
        await here.migrate("mover", to=move_place(to, tls))
    assert kept.record.leaving is None
    return await runs_on(kept, had)


async def test_to_another_host(qemu: str, places: Places, tmp_path: Path) -> None:
    """Only for who is known there; with all that was said of it, and to be asked about later."""
    ca, other = trustme.CA(), trustme.CA()
    with other_host() as host:
        theirs = certificates(tmp_path / "theirs", ca, host.address)
        ours = certificates(tmp_path / "ours", ca, "here.example")
        unknown, refused = "does not know our certificate", "CERTIFICATE_VERIFY_FAILED"
        strangers = (
            (unknown, certificates(tmp_path / "wrong", other, "here.example", trusts=ca)),
            (unknown, certificates(tmp_path / "old", ca, "here.example", age=3)),
            (refused, certificates(tmp_path / "trusts", ca, "here.example", trusts=other)),
        )
        async with lab() as here:
            kept = await here.ensure(counting(qemu, tmp_path), restart="always")
            had = await runs_on(kept, 0)
            async with receiver(host, theirs, *_allowed(qemu, tmp_path)) as url:
                for why, folder in strangers if LONG else strangers[1:]:
                    had = await _stays(here, kept, had, url, folder, why)
                named = url.replace(host.address, "nobody.invalid")
                had = await _stays(here, kept, had, named, ours, "nobody waits")
                assert await machines_there() == []
                place = move_place(url, ours)
                assert await here.migration_faults("mover", place) == ()
                took = await here.migrate("mover", to=place)
                assert 0 < took.downtime < took.seconds and not here.kept
                assert len(places.qemus()) == 1
                with trio.fail_after(20):
                    while await machines_there() != ["mover running"]:  # noqa: ASYNC110
                        await trio.sleep(0.1)


@pytest.mark.bound(240)
@pytest.mark.skipif(not LONG, reason="a minute of waiting for what has vanished: --long")
async def test_the_cable_is_pulled(qemu: str, places: Places, tmp_path: Path) -> None:
    """Nobody closes a connection: both sides notice that the other is silent."""
    ca = trustme.CA()
    with other_host() as host:
        theirs = certificates(tmp_path / "theirs", ca, host.address)
        ours = certificates(tmp_path / "ours", ca, "here.example")
        async with lab() as here, receiver(host, theirs, *_allowed(qemu, tmp_path)) as url:
            kept = await here.ensure(counting(qemu, tmp_path))
            had = await runs_on(kept, 0)
            with pytest.raises(MigrationFailed):
                await here.migrate(
                    "mover",
                    to=move_place(url, ours),
                    options=SLOW,
                    progress=lambda _: host.cable("down"),
                )
            host.cable("up")
            await runs_on(kept, had)
            with trio.fail_after(60):
                while len(places.qemus()) != 1:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            assert await machines_there() == []
        await end_all()


@pytest.mark.bound(240)
@pytest.mark.skipif(not LONG, reason="its guest runs there before its memory: with --long")
async def test_all_connections_are_lost_while_memory_follows(
    qemu: str, places: Places, tmp_path: Path
) -> None:
    """The command there ends, and another one begins: the supervisors find one another again."""
    ca = trustme.CA()
    with other_host() as host:
        theirs = certificates(tmp_path / "theirs", ca, host.address)
        ours = certificates(tmp_path / "ours", ca, "here.example")
        spec = counting(qemu, tmp_path, memory=LARGE)
        async with lab() as here:
            kept = await here.ensure(spec, restart="never")
            await runs_on(kept, 0)
            assert kept.vm is not None
            source, seen = kept.vm.machine, list[Round]()
            async with trio.open_nursery() as nursery:
                async with receiver(host, theirs, *_allowed(qemu, tmp_path)) as url:

                    async def move() -> None:
                        await here.migrate(
                            "mover",
                            to=move_place(url, ours),
                            policy=postcopy(after=0),
                            options=MigrationOptions(
                                way="tcp", tls=ours, max_bandwidth="1MiB", downtime=0.001
                            ),
                            progress=seen.append,
                        )

                    nursery.start_soon(move)
                    await kept.until(lambda: kept.state == "migrating")
                    # Let go, and after that asked there: it runs by then, and can lose its command.
                    there = ["mover migrating"]
                    while not source.stop_asked or await machines_there() != there:  # noqa: ASYNC110
                        await trio.sleep(0.02)
                await source.execute("migrate-pause", {}, oob=True)
                async with receiver(host, theirs, *_allowed(qemu, tmp_path)):
                    with trio.fail_after(60):
                        while here.kept or await machines_there() != ["mover running"]:  # noqa: ASYNC110
                            await trio.sleep(0.1)
                    assert len(places.qemus()) == 1
            assert phases(seen) == ["precopy", "postcopy", "cut"]
