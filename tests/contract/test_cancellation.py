"""Cancelled anywhere in its life, a machine leaves nothing, and is ended in order."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from qmpkit._running import opened
from qmpkit.machine.launch import launched
from qmpkit.operations import power
from qmpkit.process.spawner import shared_spawner
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake import Late
from qmpkit.testing.fake_machine import FakeHost, FakeMachine
from qmpkit.testing.leaks import leaks
from tests.contract.conftest import faked
from tests.sizes import CANCELS_FAKE

BARE = MachineSpec(name="bare", accel="tcg", memory="16MiB", agent=True)
LATEST = 0.5  # seconds that the slow fake takes for a reply


def check(host: FakeHost, *names: str) -> None:
    """Nothing lives, and nothing was ended by force: every QEMU that could be asked was."""
    assert not host.alive
    for name in names:
        assert host[name].process.status is not None
        assert host[name].process.signals == []


async def start_run_stop(host: FakeHost) -> None:
    async with launched(faked(BARE), start=host.start) as machine:
        await power.resume(machine)
        async with power.paused(machine):
            await machine.execute("query-status")
        with machine.subscribe() as events:
            await power.reset(machine)
            await events.next()
        await power.shutdown(machine, grace=5)


async def test_a_machine_at_every_checkpoint(host: FakeHost) -> None:
    async with leaks():
        cancelled = await cancel_at_every_checkpoint(
            lambda: start_run_stop(host), after=lambda: check(host)
        )
    check(host, "bare")
    assert cancelled > 20


@pytest.mark.bound(10_000)  # on the fake's clock
async def test_a_machine_at_random_moments(host: FakeHost, autojump_clock: MockClock) -> None:
    """Every reply takes its time, so that the moments lie between question and answer too."""
    chance = random.Random(2)

    def slow(machine: FakeMachine) -> None:
        for command in ("qmp_capabilities", "cont", "stop", "query-status", "system_reset", "quit"):
            machine.qemu.misbehave(command, *[Late(chance.uniform(0, LATEST)) for _ in range(5)])

    host.prepare = slow
    cancelled = 0
    async with leaks():
        for _ in range(CANCELS_FAKE):
            with trio.move_on_after(chance.uniform(0, 3)):
                await start_run_stop(host)
                continue
            cancelled += 1
            assert not host.alive
    assert cancelled > CANCELS_FAKE / 2


async def test_a_vm_at_every_checkpoint(host: FakeHost) -> None:
    """With its consoles and its agent, and what the host was asked before the start."""

    async def life() -> None:
        async with opened(BARE, start=host.start) as vm:
            await vm.resume()
            await vm.console.send_line("hello")
            await vm.quit()

    async with shared_spawner(), leaks():
        cancelled = await cancel_at_every_checkpoint(life, after=lambda: check(host))
    assert cancelled > 10


@asynccontextmanager
async def lab(host: FakeHost) -> AsyncIterator[Supervisor]:
    async with Supervisor(start=host.start, starts=2) as supervisor:
        yield supervisor
    assert {row.state for row in supervisor.table()} <= {"gone", "failed"}


async def three_at_once(host: FakeHost) -> None:
    async with lab(host) as supervisor:
        with supervisor.subscribe() as happenings:
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(supervisor.start, _named(f"vm{number}"))
            await anext(happenings)
            await supervisor.stop(powerdown_grace=5)


def _named(name: str) -> MachineSpec:
    return MachineSpec(name=name, accel="tcg", memory="16MiB")


async def test_a_supervisor_at_every_checkpoint(host: FakeHost) -> None:
    async with shared_spawner(), leaks():
        cancelled = await cancel_at_every_checkpoint(
            lambda: three_at_once(host), after=lambda: check(host)
        )
    assert cancelled > 30


@pytest.mark.parametrize("paused", [False, True])
async def test_only_a_start_at_every_checkpoint(host: FakeHost, *, paused: bool) -> None:
    """What the cancelled start was part of goes on, and so do the siblings.

    Paused, nothing is awaited between QEMU's last reply and the hand-over.
    """
    async with shared_spawner(), leaks(), lab(host) as supervisor:
        await supervisor.start(_named("sibling"))

        async def check_others() -> None:
            rows = {row.machine: row for row in supervisor.table()}
            assert rows["sibling"].state == "running"
            if "other" in supervisor.machines:  # it was the supervisor's before the cancellation
                await supervisor.machines["other"].quit()
            else:
                assert rows["other"].state in ("failed", "gone")

        cancelled = await cancel_at_every_checkpoint(
            lambda: supervisor.start(_named("other"), paused=paused), after=check_others
        )
    assert cancelled > 10
