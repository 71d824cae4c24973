"""A supervisor that ends while somebody outside its block still waits for its machines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpkit.process.entries import entries_in
from qmpkit.process.roots import JOURNAL
from qmpkit.spec.memory import Memory
from qmpkit.spec.sizes import GIB, MIB
from qmpkit.supervisor import gate as gate_module
from qmpkit.supervisor import life
from qmpkit.supervisor.admission import Host, Pool
from qmpkit.supervisor.errors import LeftAlone
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import FakeGround, fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab, on_disk

pytestmark = pytest.mark.usefixtures("state")


@asynccontextmanager
async def _left(ground: FakeGround) -> AsyncIterator[tuple[Supervisor, trio.Nursery, list[str]]]:
    """A supervisor, and a nursery that outlives it; at the end all in it has been told."""
    heard: list[str] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as outside, lab(ground) as supervisor:
            yield supervisor, outside, heard


async def _hears(heard: list[str], call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(LeftAlone) as caught:
        await call()
    heard.append(caught.value.awaited)


@pytest.mark.parametrize("wanted", ["paused", "stopped"])
async def test_one_that_is_not_yet_as_declared_goes_on_with_the_next(
    state: Path, wanted: str
) -> None:
    async with fake_ground() as ground:
        async with _left(ground) as (supervisor, outside, heard):
            kept = await supervisor.ensure(spec("a"))
            ground["a"].qemu.on("stop", {})  # and it does not
            declare = lambda: supervisor.declare("a", wanted, powerdown_grace=60)  # type: ignore[arg-type]  # noqa: E731
            ground["a"].qemu.obeys_powerdown = False
            outside.start_soon(_hears, heard, declare)
            await wait_all_tasks_blocked(0.02)
        assert heard == [f"is {wanted}"]
        assert on_disk(state, "a")["declared"] == wanted
        assert on_disk(state, "a")["identity"]["pid"] == ground["a"].pid
        assert kept.home.socket("qmp").exists(), "it can be found again"
        ground["a"].qemu.obeys_powerdown = True
        async with lab(ground) as second:
            assert second.kept["a"].adopted
            assert len(ground.started) == 1


async def test_a_start_that_has_no_room_yet_does_not_keep_it(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Host(memory=Pool(GIB, GIB), cpus=Pool.whole(8))
    monkeypatch.setattr(gate_module, "host_now", lambda pages: room)
    big = attrs.evolve(spec("a"), memory=Memory(600 * MIB))
    async with fake_ground() as ground:
        async with _left(ground) as (supervisor, outside, heard):
            await supervisor.ensure(big)
            second = attrs.evolve(big, name="b")
            outside.start_soon(_hears, heard, lambda: supervisor.ensure(second))
            await wait_all_tasks_blocked(0.02)
        assert heard == ["is up"]
        assert [fake.name for fake in ground.alive] == ["a"]
        assert list(entries_in(state / JOURNAL)) == ["a"], "as if it had never been asked for"


async def test_one_that_lives_on_has_not_come_to_rest() -> None:
    async with fake_ground() as ground:
        async with _left(ground) as (supervisor, outside, heard):
            kept = await supervisor.ensure(spec("a"), paused=True)
            outside.start_soon(_hears, heard, kept.wait_rest)
            outside.start_soon(_hears, heard, kept.wait_running)
            await wait_all_tasks_blocked()
        assert sorted(heard) == ["has come to rest", "runs"]


async def test_a_task_that_fails_tells_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: object) -> None:
        raise RuntimeError("a defect")

    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        with monkeypatch.context() as patch:
            patch.setattr(life, "_try_to_make_true", broken)
            with pytest.raises(ExceptionGroup) as caught:
                await supervisor.declare("a", "paused")
            assert caught.group_contains(RuntimeError, match="a defect")
        assert kept.home.socket("qmp").exists()
        await supervisor.declare("a", "paused")
        assert (kept.state, len(ground.started)) == ("paused", 1)
