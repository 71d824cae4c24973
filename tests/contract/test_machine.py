"""What a machine does, whoever plays QEMU: states, ends and their causes, what is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import trio
import trio.testing

from qmpkit.errors import GuestRefused, MachineDied, MachineGone
from qmpkit.machine.machine import Graces, Machine
from qmpkit.machine.report import ExitCause
from qmpkit.machine.state import State
from qmpkit.operations import power
from qmpkit.qmp.errors import CommandRefused
from qmpkit.testing.fake_machine import FakeHost
from qmpkit.testing.leaks import leaks
from tests.contract.conftest import FAKE, Launch

Send = Callable[[Machine, signal.Signals], None]


@pytest.fixture
def send(where: str, host: FakeHost) -> Send:
    """Sends a signal to the QEMU of a machine, as a stranger does."""

    def to(machine: Machine, number: signal.Signals) -> None:
        if where != FAKE:
            os.kill(machine.child.pid, number)
        elif number is signal.SIGTERM:
            host["bare"].process.terminate()
        else:
            host["bare"].process.end(number)

    return to


def now(machine: Machine) -> State:
    """Its state at this moment: a call, or mypy takes a state for one that never changes."""
    return machine.state


async def test_it_starts_paused_runs_pauses_and_resumes(launch: Launch) -> None:
    async with leaks(), launch("idle") as machine:
        assert now(machine) is State.PAUSED
        await power.resume(machine)
        assert now(machine) is State.RUNNING
        await power.pause(machine)
        assert now(machine) is State.PAUSED
        assert (await machine.execute("query-status"))["running"] is False
        await power.resume(machine)
    assert now(machine) is State.GONE


async def test_pausing_and_resuming_twice_is_no_fault(launch: Launch) -> None:
    async with launch("idle") as machine:
        await power.pause(machine)
        await power.resume(machine)
        await power.resume(machine)
        assert now(machine) is State.RUNNING


async def test_paused_puts_back_what_it_found(launch: Launch) -> None:
    async with launch("idle") as machine:
        async with power.paused(machine):
            assert now(machine) is State.PAUSED
        assert now(machine) is State.PAUSED  # as it was
        await power.resume(machine)
        with pytest.raises(LookupError):
            async with power.paused(machine):
                raise LookupError
        assert now(machine) is State.RUNNING


async def test_a_state_reached_by_somebody_else_wakes_who_waits(launch: Launch) -> None:
    async with launch("idle") as machine, trio.open_nursery() as nursery:
        nursery.start_soon(machine.reached, State.RUNNING)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await machine.execute("cont")


async def test_changes_are_told_in_order_with_their_causes(launch: Launch) -> None:
    told: list[tuple[State, str]] = []
    async with launch("idle") as machine:
        machine.on_state = lambda state, cause: told.append((state, cause))
        await power.resume(machine)
        await power.pause(machine)
    states = [state for state, _ in told]
    assert states == [State.RUNNING, State.PAUSED, State.SHUTDOWN, State.GONE]
    assert [cause for _, cause in told[:3]] == ["RESUME", "STOP", "host-qmp-quit"]
    assert told[3][1].startswith("it was stopped on request after ")


async def test_reset_returns_when_it_has_reset(launch: Launch) -> None:
    async with launch("idle") as machine:
        with machine.subscribe("RESET") as resets:
            await power.reset(machine)
            assert resets.next_nowait() is not None
        assert now(machine) is State.PAUSED


async def test_a_guests_own_reset_keeps_it_running(launch: Launch) -> None:
    async with launch("reboots") as machine:
        with machine.subscribe("RESET", where={"guest": True}) as resets:
            await power.resume(machine)
            await resets.next()
        assert now(machine) is State.RUNNING


async def test_qemus_no_is_an_error_of_the_command_alone(launch: Launch) -> None:
    async with launch() as machine:
        with pytest.raises(CommandRefused, match=r"machine 'bare' refused no-such-thing: The comm"):
            await machine.execute("no-such-thing")
        assert (await machine.execute("query-status"))["status"] == "prelaunch"


# How it ends, and what is said about it


async def test_quit_is_an_orderly_end(launch: Launch) -> None:
    async with leaks(), launch() as machine:
        report = await machine.stop(Graces())
        assert (report.cause, report.reason) == (ExitCause.HOST_QUIT, "host-qmp-quit")
        assert report.status.success
        assert await machine.stop(Graces()) == report  # again: nothing more to do
        assert await machine.wait() == report


async def test_kill_is_ours_too(launch: Launch) -> None:
    async with leaks(), launch() as machine:
        report = await machine.kill()
        assert report.cause is ExitCause.HOST_QUIT
        assert report.status.signal == signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "cause", "sentence"),
    [
        (signal.SIGTERM, ExitCause.KILLED, "QEMU was killed from outside (SIGTERM)"),
        (signal.SIGKILL, ExitCause.KILLED, "QEMU was killed from outside (killed by SIGKILL)"),
        (signal.SIGSEGV, ExitCause.CRASHED, "QEMU crashed (killed by SIGSEGV)"),
    ],
)
async def test_deaths_out_of_the_blue(
    launch: Launch, send: Send, number: signal.Signals, cause: ExitCause, sentence: str
) -> None:
    async with leaks(), launch("idle") as machine:
        await power.resume(machine)
        send(machine, number)
        report = await machine.wait()
        assert (report.cause, report.expected) == (cause, False)
        assert sentence in str(report)
        with pytest.raises(MachineDied):
            await machine.execute("query-status")


async def test_a_death_during_a_command_is_that_commands_error(launch: Launch, send: Send) -> None:
    async with launch() as machine:
        with pytest.raises(MachineDied) as caught:
            while True:
                await machine.execute("query-status")
                send(machine, signal.SIGKILL)
        assert caught.value.report == machine.report


async def test_a_guest_that_powers_off(launch: Launch) -> None:
    async with leaks(), launch("powers off") as machine:
        await power.resume(machine)  # also when the guest is off before this has looked
        report = await machine.wait()
    assert (report.cause, report.reason) == (ExitCause.GUEST_SHUTDOWN, "guest-shutdown")


async def test_a_guest_that_panics(launch: Launch) -> None:
    async with leaks(), launch("panics") as machine:
        await power.resume(machine)
        report = await machine.wait()
    assert (report.cause, report.reason) == (ExitCause.GUEST_PANIC, "guest-panic")


async def test_after_an_orderly_end_every_call_says_so(launch: Launch) -> None:
    async with launch() as machine:
        await machine.stop(Graces())
        for call in (power.pause, power.resume, power.reset, power.powerdown):
            with pytest.raises(MachineGone, match=r"^machine 'bare' has ended, .* is not possible"):
                await call(machine)
        with pytest.raises(MachineGone, match="shutdown is not possible: it was stopped"):
            await power.shutdown(machine, grace=1)
        with pytest.raises(MachineGone, match="pausing is not possible: it was stopped"):
            async with power.paused(machine):
                pytest.fail("it was entered")
        with pytest.raises(MachineGone, match="following its events is not possible"):
            machine.subscribe()
        with pytest.raises(MachineGone, match="reaching the state running is not possible"):
            await machine.reached(State.RUNNING)


async def test_a_guest_that_stands_still_is_not_asked_to_power_down(launch: Launch) -> None:
    async with launch("idle") as machine:
        refused = "refused to power down: it is paused, so it cannot notice. Cure: resume it first"
        with pytest.raises(GuestRefused, match=refused):
            await power.shutdown(machine, grace=30, escalate=False)
        assert now(machine) is State.PAUSED
        report = await power.shutdown(machine, grace=30)
        assert report.cause is ExitCause.HOST_QUIT
        assert report.uptime < 10


async def test_who_follows_events_learns_of_the_end(launch: Launch, send: Send) -> None:
    async with launch() as machine:
        with machine.subscribe() as events, pytest.raises(MachineGone, match="following its ev"):
            await machine.stop(Graces())
            async for _ in events:
                pass
    async with launch() as machine:
        with machine.subscribe() as events, pytest.raises(MachineDied):
            send(machine, signal.SIGKILL)
            await events.next()


async def test_who_waits_for_a_state_learns_of_the_end(launch: Launch, send: Send) -> None:
    async with launch() as machine, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(MachineDied):
                await machine.reached(State.RUNNING)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        send(machine, signal.SIGKILL)


async def test_a_cancelled_block_quits_in_order(launch: Launch) -> None:
    async with leaks():
        with trio.CancelScope() as scope:
            async with launch("idle") as machine:
                await power.resume(machine)
                scope.cancel()
                await trio.sleep_forever()
    assert machine.report is not None
    assert machine.report.reason == "host-qmp-quit"
    assert machine.report.uptime < 5


async def test_the_blocks_own_error_leaves_as_it_is(launch: Launch) -> None:
    async with leaks():
        with pytest.raises(LookupError, match="mine"):
            async with launch():
                raise LookupError("mine")


async def test_the_blocks_own_group_leaves_as_it_is(launch: Launch) -> None:
    with pytest.raises(ExceptionGroup, match="mine") as caught:
        async with launch():
            raise ExceptionGroup("mine", [LookupError()])
    assert [type(error) for error in caught.value.exceptions] == [LookupError]
