"""A move to another supervisor that comes to nothing at its last step: it was told to run there."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from qmpkit import MigrationFailed, UserNic
from qmpkit.operations.migration.end import Ports
from qmpkit.operations.migration.local_end import LocalEnd
from qmpkit.process import entries
from qmpkit.process.roots import JOURNAL
from qmpkit.supervisor import journal
from qmpkit.supervisor.happening import Happening
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, lab
from tests.live.migrating import counting
from tests.live.receiving import door, end_both, one_left, other, runs_on, told
from tests.sizes import LONG, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


async def test_a_qemu_that_refuses_to_run_leaves_it_where_it_was(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was on record there by then as one that has come: that is taken back."""

    async def refused(self: LocalEnd) -> None:
        await self._machine.execute("x-no-such-command")

    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path), restart="always")
            had, pid = await runs_on(kept, 0), kept.pid
            with monkeypatch.context() as patch:
                patch.setattr(LocalEnd, "_told_to_run", refused)
                with pytest.raises(MigrationFailed, match="x-no-such-command"):
                    await here.migrate("mover", to=to)
            had = await runs_on(kept, had)
            assert await one_left(places, here, there) is here
            assert (kept.pid, kept.record.leaving) == (pid, None)
            assert not entries.entries_in(places.state / "other" / JOURNAL)
            words = await told(there, "mover")
            assert "discarded" in words and "received" not in words
            await here.migrate("mover", to=to)  # nothing is in the way of another one
            await runs_on(there.kept["mover"], had)
        await end_both()


@pytest.mark.parametrize("lasts", [False, True] if LONG else [True])
async def test_what_cannot_be_written_down_there_does_not_run_there(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasts: bool
) -> None:
    """Whether the journal can be written again a moment later, or not: it is here alone."""
    full = False

    def add(path: Path, texts: Mapping[str, str | None]) -> int:
        nonlocal full
        if path.is_relative_to(places.state / "other"):
            arrived = any(text and json.loads(text).get("arrived") for text in texts.values())
            full = arrived or (full and lasts)
            if full:
                raise OSError(28, "No space left on device", str(path))
        return entries.add(path, texts)

    async with leaks():
        async with lab() as here:
            kept = await here.ensure(counting(qemu, tmp_path), restart="always")
            had = await runs_on(kept, 0)
            async with other() as there, door(tmp_path / "d", there.receive) as to:
                with monkeypatch.context() as patch:
                    patch.setattr(journal, "add", add)
                    with pytest.raises(MigrationFailed, match=f"{to}: cannot write .* No space"):
                        await here.migrate("mover", to=to)
                    had = await runs_on(kept, had)
                    assert await one_left(places, here, there) is here
                    assert kept.record.leaving is None and full is lasts
            async with other() as there:  # also for who finds what is on record there
                assert not there.kept
                had = await runs_on(kept, had)
                assert not entries.entries_in(places.state / "other" / JOURNAL)
        await end_both()


async def _past(supervisor: Supervisor) -> list[Happening]:
    found = []
    with supervisor.subscribe(since=-1) as happenings:
        while (happening := await happenings.past()) is not None:
            found.append(happening)
    return found


async def test_a_port_that_was_taken_meanwhile_is_told_of(
    qemu: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source has it no more when its move fails; its other ports lead to it again."""
    spec = counting(qemu, tmp_path, nics=[UserNic(forwards=["0:22"]), UserNic(forwards=["0:23"])])
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec)
            had = await runs_on(kept, 0)
            assert kept.vm is not None
            first, second = await kept.vm.forwards()
            with closing(socket.socket()) as thief:

                async def taken(end: LocalEnd, ports: Ports) -> None:
                    thief.bind((first.address, first.port))
                    thief.listen()
                    raise MigrationFailed("mover", "enough")

                monkeypatch.setattr(LocalEnd, "open_ports", taken)
                with pytest.raises(MigrationFailed, match="enough"):
                    await supervisor.migrate("mover")
                had = await runs_on(kept, had)
                assert await kept.vm.forwards() == (second,)
                (lost,) = [it for it in await _past(supervisor) if it.state == "ports-lost"]
                assert lost.machine == "mover" and str(first.port) in lost.cause
        async with lab() as supervisor:
            await supervisor.declare("mover", "stopped", powerdown_grace=0)
            await supervisor.forget("mover")
