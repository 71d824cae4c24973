"""Kept machines that move to another host: its network, its command, and TLS in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
import trustme

import qmpkit
from qmpkit.testing import guests
from tests.live.commands import COMMAND
from tests.live.kept import Places, lab
from tests.live.migrating import counting
from tests.live.other_host import FAR, certificates, other_host, receiver
from tests.live.receiving import runs_on
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


async def _far(*words: str) -> str:
    done = await trio.run_process([*COMMAND, *words, "--farm", FAR], capture_stdout=True)
    return done.stdout.decode()


async def test_to_another_host(qemu: str, places: Places, tmp_path: Path) -> None:
    ca = trustme.CA()
    with other_host() as host:
        theirs = certificates(tmp_path / "theirs", ca, host.address)
        ours = certificates(tmp_path / "ours", ca, "here.example")
        spec = counting(qemu, tmp_path)
        folders = (tmp_path, Path(qemu).parent.parent, guests.build_kvm_tiny().parent)
        async with lab() as here, receiver(host, theirs, *folders) as url:
            kept = await here.ensure(spec)
            had = await runs_on(kept, 0)
            place = qmpkit.move_place(url, ours)
            assert await here.migration_faults("mover", place) == ()
            took = await here.migrate("mover", to=place)
            assert 0 < took.downtime < took.seconds and not here.kept
            assert len(places.qemus()) == 1
            (row,) = json.loads(await _far("ps", "--json"))
            assert (row["name"], row["state"]) == ("mover", "running")
            assert had
