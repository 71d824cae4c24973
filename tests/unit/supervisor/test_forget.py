"""A kept machine is forgotten whole, whoever else is at it in that moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpkit.errors import JournalFailed, SpecInvalid
from qmpkit.process.entries import entries_in
from qmpkit.process.roots import JOURNAL
from qmpkit.supervisor import keeper as keeper_module
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab

pytestmark = pytest.mark.usefixtures("state")


async def _down(supervisor: Supervisor) -> None:
    await supervisor.ensure(spec("a"))
    await supervisor.declare("a", "stopped")


async def test_cancelled_it_is_forgotten_or_not(state: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:

        async def put_there() -> None:
            if not supervisor.kept:
                await _down(supervisor)
            (state / "logs" / "a").mkdir(parents=True, exist_ok=True)

        async def both_or_none() -> None:
            await supervisor._kept_machines().journal._idle.wait()
            known = set(supervisor.kept)
            assert set(entries_in(state / JOURNAL)) == known
            if not known:
                assert not (state / "logs" / "a").exists()
            await put_there()

        await put_there()
        runs = await cancel_at_every_checkpoint(lambda: supervisor.forget("a"), after=both_or_none)
        assert runs > 2


async def test_who_waited_for_its_turn_does_not_bring_it_back(state: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await _down(supervisor)
        heard: list[str] = []

        async def declare(what: str) -> None:
            with pytest.raises(SpecInvalid, match="forgotten meanwhile"):
                await supervisor.declare("a", what)  # type: ignore[arg-type]
            heard.append(what)

        async with trio.open_nursery() as nursery, supervisor.kept["a"].turn:
            nursery.start_soon(supervisor.forget, "a")
            await wait_all_tasks_blocked()
            nursery.start_soon(declare, "running")
            nursery.start_soon(declare, "stopped")
            await wait_all_tasks_blocked()
        assert len(heard) == 2
        assert ground.alive == []
        assert entries_in(state / JOURNAL) == {}


async def test_a_new_one_of_its_name_begins_when_all_of_it_is_gone(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logs, its record and its place in networks are not those of the one before."""
    async with fake_ground() as ground, lab(ground) as supervisor:
        await _down(supervisor)
        seen: list[int] = []
        monkeypatch.setattr(keeper_module, "discard", lambda path: seen.append(len(ground.alive)))
        async with trio.open_nursery() as nursery:
            first = supervisor.kept["a"]
            async with first.turn:
                nursery.start_soon(supervisor.forget, "a")
                await wait_all_tasks_blocked()
                nursery.start_soon(supervisor.ensure, spec("a"))
                nursery.start_soon(_forget_again, supervisor)
                await wait_all_tasks_blocked()
        assert seen == [0]
        assert supervisor.kept["a"] is not first
        assert supervisor.kept["a"].state == "running"
        assert [fake.name for fake in ground.alive] == ["a"]
        assert set(entries_in(state / JOURNAL)) == {"a"}


async def _forget_again(supervisor: Supervisor) -> None:
    with pytest.raises(SpecInvalid):
        await supervisor.forget("a")


async def test_nobody_waits_for_a_journal_that_has_ended() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as supervisor:
            kept = await supervisor.ensure(spec("a"))
            journal = supervisor._kept_machines().journal
        with trio.fail_after(5), pytest.raises(JournalFailed, match="its supervisor has ended"):
            await journal.put(kept.record)
