"""Many machines under one roof, on fakes: none cancels another, all end together."""

from __future__ import annotations

import gc
import signal
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import attrs
import pytest
import trio
import trio.testing

from qmpkit.errors import LaunchFailed, MachineGone, SpecInvalid
from qmpkit.host.resolve import Resolution
from qmpkit.machine.launch import LaunchOptions, Started
from qmpkit.machine.machine import Graces
from qmpkit.machine.report import ExitCause
from qmpkit.machine.state import State
from qmpkit.operations.block.at_rest import at_rest
from qmpkit.spec.machine import MachineSpec
from qmpkit.supervisor.supervisor import Supervisor
from qmpkit.testing.fake_machine import FakeHost, FakeMachine
from qmpkit.testing.leaks import leaks
from tests.unit.supervisor.conftest import spec


def states(lab: Supervisor) -> dict[str, str]:
    return {row.machine: row.state for row in lab.table()}


async def settle() -> None:
    """Let everybody do what they can do without time passing."""
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_machines_start_and_stop_together(host: FakeHost) -> None:
    async with leaks():
        async with Supervisor("lab", start=host.start) as lab:
            async with trio.open_nursery() as nursery:
                for name in ("a", "b", "c"):
                    nursery.start_soon(lab.start, spec(name))
            assert states(lab) == dict.fromkeys("abc", "running")
            assert set(lab.machines) == set(host.alive) == {"a", "b", "c"}
        assert states(lab) == dict.fromkeys("abc", "gone")
        assert not lab.machines
        assert {row.cause.partition(" after")[0] for row in lab.table()} == {
            "it was stopped on request"
        }


async def test_a_row_says_what_is_known(host: FakeHost) -> None:
    async with Supervisor(start=host.start) as lab:
        vm = await lab.start(spec("a"), paused=True)
        (row,) = lab.table()
        assert (row.machine, row.state, row.cause) == ("a", "paused", "QEMU is up")
        assert (row.pid, row.accel) == (vm.pid, "tcg")
        assert 0 <= row.since < 5
        await vm.quit()
        (row,) = lab.table()
        assert (row.state, row.pid, row.accel) == ("gone", None, "tcg")


async def test_of_one_that_has_ended_only_its_row_stays(host: FakeHost) -> None:
    async with Supervisor(start=host.start) as lab:
        vm = await lab.start(spec("a"))
        ended = weakref.ref(vm.machine)
        await vm.quit()
        await settle()
        del vm
        gc.collect()
        assert ended() is None
        assert states(lab) == {"a": "gone"}


async def test_one_death_touches_nobody_else(host: FakeHost) -> None:
    async with Supervisor(start=host.start) as lab:
        dead, alive = await lab.start(spec("dead")), await lab.start(spec("alive"))
        host["dead"].process.end(signal.SIGSEGV)
        assert (await dead.wait()).cause is ExitCause.CRASHED
        await settle()
        assert (await alive.execute("query-status"))["running"]
        assert states(lab) == {"dead": "gone", "alive": "running"}
        assert lab.table()[0].cause.startswith("QEMU crashed (killed by SIGSEGV) after ")
        assert set(lab.machines) == {"alive"}


async def test_a_cleanup_that_fails_touches_nobody_else(host: FakeHost) -> None:
    @asynccontextmanager
    async def start(resolution: Resolution, options: LaunchOptions) -> AsyncIterator[Started]:
        async with host.start(resolution, options) as started:
            yield started
        if resolution.spec.name == "a":
            raise OSError("the disk is gone")

    async with Supervisor(start=start) as lab:
        a, b = await lab.start(spec("a")), await lab.start(spec("b"))
        await a.quit()
        await settle()
        assert b.state is State.RUNNING
        assert states(lab) == {"a": "gone", "b": "running"}


async def test_a_stop_takes_the_graces_of_the_start(host: FakeHost) -> None:
    graces = Graces(quit=0.1, term=0.1, kill=5)
    async with Supervisor(start=host.start) as lab:
        await lab.start(spec("a"), options=LaunchOptions(graces=graces))
        host["a"].qemu.silent = True
        with trio.fail_after(3):
            await lab.stop()


def test_no_starts_at_all_is_no_choice() -> None:
    with pytest.raises(ValueError, match=r"starts=0"):
        Supervisor(starts=0)


async def test_no_more_starts_at_once_than_allowed() -> None:
    host, most = FakeHost(), 0

    @asynccontextmanager
    async def slow(resolution: Resolution, options: LaunchOptions) -> AsyncIterator[Started]:
        nonlocal most
        async with host.start(resolution, options) as started:
            most = max(most, _starting(lab))
            await trio.sleep(0.01)
            yield started

    async with Supervisor(starts=2, start=slow) as lab, trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(lab.start, spec(f"vm{number}"))
        await settle()
    assert most == 2


def _starting(lab: Supervisor) -> int:
    return sum(state == "starting" for state in states(lab).values())


async def test_what_is_no_machine_is_said_so(host: FakeHost, state: Path) -> None:
    wrong = cast(MachineSpec, "web.toml")
    no_text = attrs.evolve(spec("a"), name=cast(str, []))
    async with Supervisor("lab", start=host.start, keep=True) as lab:
        for ask in (lab.start, lab.ensure, partial(lab.amend, restart=None)):
            with pytest.raises(SpecInvalid, match="a machine is a MachineSpec, not 'web"):
                await ask(wrong)
            with pytest.raises(SpecInvalid, match="name: "):
                await ask(no_text)
    with pytest.raises(SpecInvalid, match="a machine is a MachineSpec, not 'web"):
        async with at_rest(wrong):
            pass


# Names


async def test_a_name_is_taken_while_its_machine_lives(host: FakeHost) -> None:
    async with Supervisor("lab", start=host.start) as lab:
        await lab.start(spec("a"))
        with pytest.raises(SpecInvalid) as caught:
            await lab.start(spec("a"))
        assert str(caught.value) == (
            "supervisor 'lab': name: 'a' is taken by a machine of this supervisor"
        )
        assert states(lab) == {"a": "running"}


async def test_a_name_is_free_in_the_moment_its_machine_has_ended(host: FakeHost) -> None:
    async with Supervisor(start=host.start) as lab:
        for _ in range(3):
            vm = await lab.start(spec("a"))
            host["a"].process.end(signal.SIGKILL)
            await vm.wait()
        await lab.stop()
        await lab.start(spec("a"))
        assert states(lab) == {"a": "running"}


# Starts that come to nothing


async def test_a_failed_start_disturbs_nobody(host: FakeHost) -> None:
    def prepare(machine: FakeMachine) -> None:
        if len(host.alive) == 1:
            machine.process.stderr_tail = "no luck today\n"
            machine.process.end(1)

    async with leaks(), Supervisor(start=host.start) as lab:
        good = await lab.start(spec("good"))
        host.prepare = prepare
        with pytest.raises(LaunchFailed, match="no luck today"):
            await lab.start(spec("bad"))
        assert states(lab) == {"good": "running", "bad": "failed"}
        assert "no luck today" in lab.table()[1].cause
        assert good.state is State.RUNNING
        host.prepare = lambda machine: None
        await lab.start(spec("bad"))
        assert states(lab) == {"good": "running", "bad": "running"}


async def test_a_spec_that_cannot_be_is_a_failed_start(host: FakeHost) -> None:
    async with Supervisor(start=host.start) as lab:
        with pytest.raises(SpecInvalid, match="holds a '/'"):
            await lab.start(spec("a/b"))
        assert states(lab) == {"a/b": "failed"}


async def test_a_cancelled_start_is_taken_down(host: FakeHost) -> None:
    host.prepare = lambda machine: setattr(machine.qemu, "silent", True)
    async with leaks(), Supervisor(start=host.start) as lab:
        with trio.move_on_after(0.05):
            await lab.start(spec("a"))
        assert not host.alive
        assert states(lab) == {"a": "failed"}
        assert lab.table()[0].cause == "the start was cancelled"


async def test_starts_that_a_stop_overtakes(host: FakeHost) -> None:
    host.prepare = lambda machine: setattr(machine.qemu, "silent", True)
    async with leaks(), Supervisor(starts=1, start=host.start) as lab:
        async with trio.open_nursery() as nursery:

            async def start(name: str) -> None:
                with pytest.raises(MachineGone) as caught:
                    await lab.start(spec(name))
                assert str(caught.value) == f"machine {name!r} has ended, its start is not possible"

            nursery.start_soon(start, "greeting")
            nursery.start_soon(start, "queued")
            await settle()
            await lab.stop()
        assert states(lab) == {"greeting": "failed", "queued": "failed"}


async def test_a_closed_supervisor_starts_nothing(host: FakeHost) -> None:
    lab = Supervisor(start=host.start)
    with pytest.raises(RuntimeError, match="is not open"):
        await lab.start(spec("a"))
    async with lab:
        pass
    with pytest.raises(RuntimeError, match="is not open"):
        await lab.start(spec("a"))
    with pytest.raises(RuntimeError, match="is entered once"):
        async with lab:
            pytest.fail("it was entered")


# The end of the block


@pytest.mark.alone
async def test_an_orderly_stop_asks_all_at_once(host: FakeHost) -> None:
    async with leaks():
        async with Supervisor(start=host.start, powerdown_grace=0.3) as lab:
            obedient = [await lab.start(spec(f"ok{number}")) for number in range(3)]
            deaf = [await lab.start(spec(f"deaf{number}")) for number in range(8)]
            for vm in deaf:
                host[vm.name].qemu.obeys_powerdown = False
            paused = await lab.start(spec("paused"), paused=True)
            begun = trio.current_time()
        # One grace for all of them: one after the other would be eight, however quick the host.
        assert 0.3 <= trio.current_time() - begun < 8 * 0.3
    causes = [vm.report.cause for vm in [*obedient, *deaf, paused] if vm.report]
    assert causes == [ExitCause.GUEST_SHUTDOWN] * 3 + [ExitCause.HOST_QUIT] * 9
    # One that stands still cannot hear the button: it is not asked.
    assert "system_powerdown" not in [call.command for call in host["paused"].qemu.calls]


async def test_a_stop_goes_round_one_that_resists(host: FakeHost) -> None:
    async with leaks(), Supervisor(start=host.start) as lab:
        await lab.start(spec("stubborn"))
        await lab.start(spec("willing"))
        host["stubborn"].qemu.hang_up()  # cannot be asked: SIGTERM comes half a second later
        await lab.stop()
        assert host["stubborn"].process.signals == [signal.SIGTERM]
        assert states(lab) == {"stubborn": "gone", "willing": "gone"}


async def test_the_blocks_error_leaves_as_it_is(host: FakeHost) -> None:
    async with leaks():
        with pytest.raises(LookupError, match="mine") as caught:
            async with Supervisor(start=host.start) as lab:
                await lab.start(spec("a"))
                raise LookupError("mine")
        assert caught.value.__context__ is None
        assert states(lab) == {"a": "gone"}


async def test_the_blocks_group_leaves_as_it_is(host: FakeHost) -> None:
    with pytest.raises(ExceptionGroup, match="mine") as caught:
        async with Supervisor(start=host.start):
            raise ExceptionGroup("mine", [LookupError()])
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


async def test_a_cancelled_block_stops_in_order(host: FakeHost) -> None:
    async with leaks():
        with trio.CancelScope() as scope:
            async with Supervisor(start=host.start, powerdown_grace=5) as lab:
                vm = await lab.start(spec("a"))
                scope.cancel()
                await trio.sleep_forever()
    assert vm.report is not None
    assert vm.report.cause is ExitCause.GUEST_SHUTDOWN  # asked, though all was cancelled


async def test_the_starters_end_is_not_the_machines(host: FakeHost) -> None:
    async with Supervisor(start=host.start) as lab:
        with trio.CancelScope() as scope:
            vm = await lab.start(spec("a"))
            scope.cancel()
            await trio.lowlevel.checkpoint()
        await settle()
        assert vm.state is State.RUNNING
