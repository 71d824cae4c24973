"""How a machine's death and the block's own exceptions leave `running`, on fakes."""

from __future__ import annotations

import signal
import socket
from typing import NoReturn, cast

import pytest
import trio

import qmpkit
from qmpkit import (
    Destination,
    ExitCause,
    MachineDied,
    MachineGone,
    MachineSpec,
    SpecInvalid,
    State,
    UserNic,
)
from qmpkit.qmp.errors import MonitorLost
from qmpkit.testing.fake_machine import FakeHost
from qmpkit.testing.leaks import leaks


def spec(name: str = "vm") -> MachineSpec:
    return MachineSpec(name=name, accel="tcg", memory="16MiB")


def crash(host: FakeHost, name: str = "vm") -> None:
    host[name].process.end(signal.SIGSEGV)


async def test_a_death_cancels_a_block_of_many_tasks(host: FakeHost) -> None:
    async with leaks():
        with pytest.raises(MachineDied, match=r"machine 'vm' died: QEMU crashed .*SIGSEGV"):
            async with qmpkit.running(spec(), start=host.start), trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)
                crash(host)


async def test_commands_that_fail_of_the_death_say_nothing_new(host: FakeHost) -> None:
    with pytest.raises(MachineDied):
        async with qmpkit.running(spec(), start=host.start) as vm:
            host["vm"].qemu.silent = True
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(vm.execute, "query-status")
                await host["vm"].qemu.called("query-status", 3)
                crash(host)


async def test_the_death_of_another_machine_is_news(host: FakeHost) -> None:
    with pytest.raises(BaseExceptionGroup, match="machine 'outer' died") as caught:
        async with (
            qmpkit.running(spec("outer"), start=host.start) as outer,
            qmpkit.running(spec("inner"), start=host.start) as inner,
        ):
            with trio.CancelScope(shield=True):
                crash(host, "inner")
                crash(host, "outer")
                await inner.wait()
                await outer.wait()
    died = [e.report.machine for e in caught.value.exceptions if isinstance(e, MachineDied)]
    assert sorted(died) == ["inner", "outer"]


async def test_a_death_during_a_cancellation_from_outside_is_told(host: FakeHost) -> None:
    with trio.CancelScope() as scope, pytest.raises(MachineDied):
        async with qmpkit.running(spec(), start=host.start) as vm:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                crash(host)
                with trio.CancelScope(shield=True):
                    await vm.wait()
    assert not scope.cancelled_caught


async def test_a_group_of_the_users_comes_with_the_death(host: FakeHost) -> None:
    async def fail(error: Exception) -> NoReturn:
        raise error

    with pytest.raises(BaseExceptionGroup) as caught:
        async with qmpkit.running(spec(), start=host.start) as vm:
            crash(host)
            with trio.CancelScope(shield=True):
                await vm.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, LookupError("mine"))
                nursery.start_soon(fail, MonitorLost("vm", "an echo"))
    assert caught.group_contains(LookupError, match="mine")
    assert caught.group_contains(MachineDied)
    assert not caught.group_contains(MonitorLost)


async def test_an_orderly_end_leaves_the_block_alone(host: FakeHost) -> None:
    async with qmpkit.running(spec(), start=host.start) as vm:
        host["vm"].qemu.guest_shutdown()
        await vm.wait()
        await trio.sleep(0.01)
        with pytest.raises(MachineGone):
            await vm.pause()


async def test_the_users_group_leaves_as_it_is(host: FakeHost) -> None:
    with pytest.raises(ExceptionGroup, match="mine") as caught:
        async with qmpkit.running(spec(), start=host.start):
            raise ExceptionGroup("mine", [LookupError()])
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


# The grace at the end of the block


async def test_the_guest_gets_its_grace(host: FakeHost) -> None:
    async with qmpkit.running(spec(), powerdown_grace=30, start=host.start) as vm:
        pass
    assert vm.report is not None
    assert vm.report.cause is ExitCause.GUEST_SHUTDOWN


async def test_a_guest_that_goes_just_then_is_no_fault(host: FakeHost) -> None:
    async with qmpkit.running(spec(), powerdown_grace=30, start=host.start) as vm:
        host["vm"].qemu.guest_shutdown()  # nobody has looked yet
    assert vm.report is not None
    assert vm.report.cause is ExitCause.GUEST_SHUTDOWN


async def test_a_guest_that_stands_still_is_not_waited_for(host: FakeHost) -> None:
    async with (
        leaks(),
        qmpkit.running(spec(), paused=True, powerdown_grace=30, start=host.start) as vm,
    ):
        assert vm.state is State.PAUSED
    assert vm.report is not None
    assert vm.report.cause is ExitCause.HOST_QUIT
    assert vm.report.uptime < 5


async def test_a_panicked_guest_is_not_asked_to_power_down(host: FakeHost) -> None:
    async with qmpkit.running(spec(), powerdown_grace=30, start=host.start) as vm:
        host["vm"].qemu.guest_panic()
        await vm.machine.reached(State.PANICKED)
        with pytest.raises(qmpkit.GuestRefused, match=r"it is panicked, .* Cure: reset it first"):
            await vm.shutdown(escalate=False)
    assert vm.report is not None
    assert vm.report.cause is ExitCause.GUEST_PANIC
    assert vm.report.uptime < 5


async def test_a_guest_that_is_off_needs_no_button(host: FakeHost) -> None:
    async with qmpkit.running(spec(), start=host.start) as vm:
        host["vm"].qemu.pauses_on_shutdown = True
        host["vm"].qemu.guest_shutdown()
        await vm.machine.reached(State.SHUTDOWN)
        report = await vm.shutdown(escalate=False)
    assert report.expected
    assert host["vm"].process.signals == []


@pytest.mark.parametrize("grace", [-1, float("nan")])
async def test_a_grace_that_cannot_be_is_refused_before_the_start(
    host: FakeHost, grace: float
) -> None:
    with pytest.raises(ValueError, match=f"powerdown_grace={grace}: it is a number of seconds, 0"):
        async with qmpkit.running(spec(), powerdown_grace=grace, start=host.start):
            pytest.fail("it was started")
    with pytest.raises(ValueError, match=f"powerdown_grace={grace}"):
        qmpkit.Supervisor(powerdown_grace=grace)
    with pytest.raises(ValueError, match=f"term={grace}"):
        qmpkit.Graces(term=grace)
    async with qmpkit.Supervisor(start=host.start) as lab:
        vm = await lab.start(spec())
        with pytest.raises(ValueError, match=f"powerdown_grace={grace}"):
            await lab.stop(powerdown_grace=grace)
        with pytest.raises(ValueError, match=f"grace={grace}"):
            await vm.shutdown(grace=grace)
        assert vm.state is State.RUNNING


async def test_descriptors_go_with_a_command(host: FakeHost) -> None:
    async with qmpkit.running(spec(), start=host.start) as vm:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await vm.execute("getfd", {"fdname": "cable"}, fds=[theirs.fileno()])
        assert list(host["vm"].qemu.named_fds) == ["cable"]


async def test_a_failed_block_stops_at_once(host: FakeHost) -> None:
    with pytest.raises(LookupError):
        async with qmpkit.running(spec(), powerdown_grace=30, start=host.start) as vm:
            raise LookupError
    assert vm.report is not None
    assert vm.report.cause is ExitCause.HOST_QUIT


async def test_a_crash_in_the_last_moment_of_the_block_is_told(host: FakeHost) -> None:
    """Its end has not been seen when the block is left."""
    with pytest.raises(MachineDied, match=r"QEMU crashed .*SIGSEGV"):
        async with qmpkit.running(spec(), start=host.start):
            crash(host)


async def test_a_crash_as_qemu_is_told_to_end_is_told(host: FakeHost) -> None:
    with pytest.raises(MachineDied, match=r"QEMU crashed .*SIGABRT"):
        async with qmpkit.running(spec(), start=host.start):
            host["vm"].qemu.on("quit", lambda _: host["vm"].process.end(signal.SIGABRT))


async def test_the_blocks_own_exception_leaves_alone_when_qemu_crashes_after_it(
    host: FakeHost,
) -> None:
    with pytest.raises(LookupError):
        async with qmpkit.running(spec(), start=host.start):
            host["vm"].qemu.on("quit", lambda _: host["vm"].process.end(signal.SIGABRT))
            raise LookupError


async def test_a_word_is_no_nic(host: FakeHost) -> None:
    async with qmpkit.running(spec(), start=host.start) as vm:
        for change in (vm.nics.add, vm.nics.change):
            with pytest.raises(SpecInvalid, match="machine 'vm': nic: cannot be 'user'"):
                await change(cast(UserNic, "user"))


async def test_an_address_is_no_destination_of_a_migration(host: FakeHost) -> None:
    address = cast(Destination, "tcp:10.0.0.1:4444")
    async with qmpkit.running(spec(), start=host.start) as vm:
        with pytest.raises(SpecInvalid, match=r"cannot be 'tcp:10.* qmpkit\.receiving\(vm\)"):
            await vm.migrate(address)
        with pytest.raises(SpecInvalid, match=r"cannot be 'tcp:10"):
            async with vm.migrating(address):
                pass
        assert vm.state is State.RUNNING
