"""The gate: machines start in order, as many as there is room for, and say what they wait for."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from qmpkit.errors import HostLacks, SpecInvalid
from qmpkit.spec.memory import Memory
from qmpkit.spec.sizes import GIB, MIB
from qmpkit.supervisor import gate as gate_module
from qmpkit.supervisor.admission import Demand, Host, Pool
from qmpkit.supervisor.errors import StartBlocked
from qmpkit.supervisor.gate import Gate
from qmpkit.supervisor.kept import Kept
from qmpkit.supervisor.room import QEMU_SHARE, demand_of, host_now
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_kept import FakeKept, fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import AT_ONCE, HASTY, lab

pytestmark = pytest.mark.usefixtures("state")


def _order(ground: Any, supervisor: Supervisor) -> list[str]:
    names = {kept.pid: name for name, kept in supervisor.kept.items()}
    return [names[fake.pid] for fake in ground.started]


async def test_each_comes_after_what_it_needs() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        last = await supervisor.ensure(spec("c"), requires=["b"], wait=False)
        await last.until(lambda: last.state == "blocked")
        assert "it requires b, which is stopped: there is no such machine" in last.cause
        await supervisor.ensure(spec("b"), after=["nobody"], requires=["a"], wait=False)
        await supervisor.ensure(spec("a"), wait=False)
        await last.wait_running()
        assert sorted(_order(ground, supervisor)[:2]) == ["a", "b"]
        assert _order(ground, supervisor)[2] == "c"


async def test_one_that_requires_a_failed_one_waits_and_goes_on() -> None:
    def prepare(fake: FakeKept) -> None:
        if broken:
            raise HostLacks("it is broken", "")

    broken = True
    async with fake_ground() as ground, lab(ground) as supervisor:
        ground.prepare = prepare
        a = await supervisor.ensure(spec("a"), restart="never", wait=False)
        b = await supervisor.ensure(spec("b"), requires=["a"], wait=False)
        await b.until(lambda: b.state == "blocked")
        assert a.state == "failed"
        with pytest.raises(StartBlocked, match="'c' cannot start: it requires a, which has failed"):
            await supervisor.ensure(spec("c"), requires=["a"])
        assert "c" not in supervisor.kept
        broken = False
        await supervisor.declare("a", "running")
        await b.wait_running()


async def test_stopping_takes_one_out_of_the_queue() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"), requires=["b"], wait=False)
        await kept.until(lambda: kept.state == "blocked")
        await supervisor.declare("a", "stopped")
        assert (kept.state, kept.tended, ground.started) == ("gone", False, [])
        assert "called off" in kept.cause


async def test_a_circle_is_refused() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await supervisor.ensure(spec("a"), after=["b"])
        with pytest.raises(SpecInvalid, match="none of them could start first: a → b → a"):
            await supervisor.ensure(spec("b"), requires=["a"])


async def test_a_circle_that_came_to_be_blocks_and_ends_nobody_else() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as supervisor:
            await supervisor.ensure(spec("a"), restart=AT_ONCE)
            await supervisor.ensure(spec("b"), requires=["a"], restart=AT_ONCE)
            await supervisor.ensure(spec("c"), requires=["b"], restart=AT_ONCE)
            await supervisor.ensure(spec("d"), restart=AT_ONCE)
            await supervisor.amend(spec("a"), restart=AT_ONCE, requires=["b"])
        for fake in ground.alive:
            fake.end(signal.SIGKILL)
        async with lab(ground) as second:
            await second.kept["d"].wait_running()
            for name, why in (("a", "a → b → a"), ("b", "a → b → a"), ("c", "a → b → a")):
                kept = second.kept[name]
                await kept.until(lambda kept=kept: kept.state == "blocked")  # type: ignore[misc]
                assert why in kept.cause
            await second.amend(spec("a"), restart=AT_ONCE)
            await second.kept["c"].wait_running()


async def test_a_circle_is_stopped_all_the_same() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        await supervisor.ensure(spec("a"))
        await supervisor.ensure(spec("b"), after=["a"])
        await supervisor.amend(spec("a"), restart="never", after=["b"])
        with trio.fail_after(5):
            stopped = await supervisor.stop_kept()
        assert {it.name: it.failure for it in stopped} == {"a": None, "b": None}
        assert ground.alive == []


async def test_no_more_start_together_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, together, most, two = Gate.turn, 0, 0, trio.Event()

    @asynccontextmanager
    async def counted(self: Gate, kept: Kept, *, patient: bool) -> AsyncIterator[None]:
        nonlocal together, most
        async with turn(self, kept, patient=patient):
            together += 1
            most = max(most, together)
            if together == 2:
                two.set()
            await two.wait()  # the first stays until there is a second
            yield
            together -= 1

    monkeypatch.setattr(Gate, "turn", counted)
    async with fake_ground() as ground:
        supervisor = Supervisor("lab", keep=True, ground=ground, options=HASTY, starts=2)
        async with supervisor:
            for number in range(7):
                await supervisor.ensure(spec(f"m{number}"), wait=False)
            for kept in supervisor.kept.values():
                await kept.wait_running()
    assert most == 2


async def test_what_does_not_fit_waits_for_room_or_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = Host(memory=Pool(GIB, GIB), cpus=Pool.whole(8))
    monkeypatch.setattr(gate_module, "host_now", lambda pages: room)
    big = attrs.evolve(spec("b"), memory=Memory(600 * MIB))
    async with fake_ground() as ground:
        supervisor = Supervisor("lab", keep=True, ground=ground, options=HASTY)
        async with supervisor:
            with pytest.raises(HostLacks, match=r"'huge' does not fit on this host: .* of memory"):
                await supervisor.ensure(attrs.evolve(big, name="huge", memory=Memory(2 * GIB)))
            await supervisor.ensure(attrs.evolve(big, name="a"))
            b = await supervisor.ensure(big, wait=False)
            await b.until(lambda: b.cause.startswith("it waits for"))
            assert "632 MiB of memory: 392 MiB are free" in b.cause
            await supervisor.declare("a", "stopped")
            await b.wait_running()


async def test_a_queued_machine_that_was_left_starts_with_the_next_supervisor() -> None:
    async with fake_ground() as ground:
        async with lab(ground) as supervisor:
            kept = await supervisor.ensure(spec("b"), requires=["a"], restart=AT_ONCE, wait=False)
            await kept.until(lambda: kept.state == "blocked")
        async with lab(ground) as supervisor:
            await supervisor.ensure(spec("a"), wait=False)
            await supervisor.kept["b"].wait_running()
            assert supervisor.kept["b"].restart == AT_ONCE


async def test_many_in_the_queue_take_little_time() -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        began = trio.current_time()
        for number in range(100):
            await supervisor.ensure(spec(f"m{number}"), wait=False)
        for kept in supervisor.kept.values():
            await kept.wait_running()
        assert trio.current_time() - began < 20


def test_what_a_machine_takes(tmp_path: Path) -> None:
    plain = attrs.evolve(spec("a"), memory=Memory(64 * MIB))
    assert demand_of(plain) == Demand(memory=64 * MIB + QEMU_SHARE)
    backed = attrs.evolve(plain, memory=Memory(64 * MIB, mem_path=tmp_path))
    assert demand_of(backed) == Demand(memory=64 * MIB + QEMU_SHARE)  # no hugetlbfs


def test_the_host_has_memory_and_cpus() -> None:
    host = host_now()
    assert 0 < host.memory.free <= host.memory.total
    assert host.cpus.total >= 100
