"""The life of a real machine: it runs, pauses, obeys, resists, dies, and is told apart."""

from __future__ import annotations

import os
import signal
import sys

import attrs
import pytest
import trio

import qmpkit
from qmpkit import ExitCause, LaunchOptions, MachineDied, MachineGone, MachineSpec, State
from qmpkit.testing import guests
from tests.live.counting import counted
from tests.sizes import NEWEST

pytestmark = pytest.mark.live


def tiny(qemu: str) -> MachineSpec:
    return attrs.evolve(qmpkit.load_profile("tiny"), qemu=qemu, accel="tcg")


@pytest.fixture
def bare(qemu: str) -> MachineSpec:
    """A machine without a guest: enough for everything that is between QEMU and us."""
    return MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")


@pytest.mark.qemus(*NEWEST)
async def test_a_linux_guest_lives(qemu: str) -> None:
    async with qmpkit.running(tiny(qemu)) as vm:
        await vm.console.expect("tiny# ")
        async with vm.paused():
            stood = vm.state
        assert (stood, vm.state) == (State.PAUSED, State.RUNNING)
        await vm.console.send_line("echo alive-$((6 * 7))")
        await vm.console.expect("alive-42")
        await vm.reset()
        await vm.console.expect("qmpkit tiny guest ready")
        report = await vm.shutdown(grace=30)
    assert report.cause is ExitCause.GUEST_SHUTDOWN
    assert report.status.success


async def test_a_guest_that_ignores_the_button_is_escalated(qemu: str) -> None:
    async with guests.booted(_deaf(qemu)) as vm:
        with pytest.raises(qmpkit.GuestRefused, match=r"'tiny'.*power down.*still running"):
            await vm.shutdown(grace=0.5, escalate=False)
        assert vm.state is State.RUNNING
        report = await vm.shutdown(grace=0.2)
    assert report.cause is ExitCause.HOST_QUIT


def _deaf(qemu: str) -> MachineSpec:
    spec = tiny(qemu)
    assert spec.kernel is not None
    deaf = attrs.evolve(spec.kernel, append=f"{spec.kernel.append} tiny.ignore_powerdown")
    return attrs.evolve(spec, kernel=deaf)


async def test_the_agent_shuts_the_guest_down(qemu: str) -> None:
    async with guests.booted(tiny(qemu)) as vm:
        report = await vm.shutdown(grace=30, by="agent")
    assert report.cause is ExitCause.GUEST_SHUTDOWN


async def test_a_guests_own_end_does_not_cancel_the_block(qemu: str) -> None:
    async with guests.booted(tiny(qemu)) as vm:
        await vm.console.send_line("poweroff -f")
        report = await vm.wait()
        assert report.cause is ExitCause.GUEST_SHUTDOWN
        with pytest.raises(MachineGone, match=r"'tiny' has ended, query-status is not possible"):
            await vm.execute("query-status")
        await trio.sleep(0.05)  # still here: nothing cancelled us
    assert vm.report == report


async def test_a_panic_is_told_from_a_shutdown(qemu: str) -> None:
    async with guests.booted(tiny(qemu)) as vm:
        await vm.console.send_line("echo c > /proc/sysrq-trigger")
        report = await vm.wait()
    assert report.cause is ExitCause.GUEST_PANIC
    assert report.panic is not None
    assert "the guest panicked" in str(report)


async def test_a_crash_cancels_the_block(bare: MachineSpec) -> None:
    with pytest.raises(MachineDied, match=r"'bare' died: QEMU was killed.*SIGKILL") as caught:
        async with qmpkit.running(bare) as vm:
            os.kill(vm.pid, signal.SIGKILL)
            await trio.sleep_forever()
    assert caught.value.report.status.signal == signal.SIGKILL


async def test_a_crash_during_a_command_is_one_error(bare: MachineSpec) -> None:
    with pytest.raises(MachineDied):
        async with qmpkit.running(bare) as vm:
            os.kill(vm.pid, signal.SIGABRT)
            while True:
                await vm.execute("query-status")
    assert vm.report is not None
    assert vm.report.cause is ExitCause.CRASHED


async def test_a_crash_and_the_users_own_error_come_together(bare: MachineSpec) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with qmpkit.running(bare) as vm:
            os.kill(vm.pid, signal.SIGKILL)
            await vm.wait()
            raise LookupError("mine")
    kinds = {type(error) for error in caught.value.exceptions}
    assert kinds == {LookupError, MachineDied}


async def test_the_users_own_error_leaves_unwrapped(bare: MachineSpec) -> None:
    with pytest.raises(LookupError, match="mine") as caught:
        async with qmpkit.running(bare) as vm:
            raise LookupError("mine")
    assert vm.report is not None
    assert vm.report.cause is ExitCause.HOST_QUIT
    assert caught.value.__context__ is None


@pytest.mark.alone
async def test_a_cancelled_block_stops_in_order_and_at_once(bare: MachineSpec) -> None:
    with trio.CancelScope() as scope:
        async with qmpkit.running(bare) as vm:
            scope.cancel()
            await trio.sleep_forever()
    assert vm.report is not None
    # By `quit`, not by a signal: the reader outlived the cancellation.
    assert vm.report.reason == "host-qmp-quit"
    assert vm.report.uptime < 2


async def test_sigterm_from_outside_is_no_quit_of_ours(bare: MachineSpec) -> None:
    with pytest.raises(MachineDied, match="SIGTERM"):
        async with qmpkit.running(bare) as vm:
            os.kill(vm.pid, signal.SIGTERM)
            await trio.sleep_forever()


async def test_qemu_that_dies_at_once_is_a_failed_launch(bare: MachineSpec) -> None:
    broken = attrs.evolve(bare, extra_args=["-device", "no-such-device"])
    with pytest.raises(qmpkit.LaunchFailed) as caught:
        async with qmpkit.running(broken):
            pytest.fail("it started")
    error = caught.value
    assert error.machine == "bare"
    assert error.status == "exit status 1"
    assert error.argv[-1] == "no-such-device"
    assert "'no-such-device' is not a valid device model name" in error.stderr_tail
    assert error.stderr_tail.strip() in str(error)


async def test_qemu_that_never_greets_is_bounded(bare: MachineSpec) -> None:
    sleeper = "import time; print('zzz', flush=True); time.sleep(99)"
    silent = attrs.evolve(bare, launcher=[sys.executable, "-c", sleeper])
    with pytest.raises(qmpkit.LaunchFailed, match=r"did not get ready\.\nzzz\n.*silent for 1 s"):
        async with qmpkit.running(silent, options=LaunchOptions(ready_within=1)):
            pytest.fail("it started")


async def test_paused_start_waits_for_resume(bare: MachineSpec) -> None:
    async with qmpkit.running(bare, paused=True) as vm:
        assert (await vm.execute("query-status"))["status"] == "prelaunch"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.wait_running)
            await vm.resume()


async def test_reset_reaches_a_paused_machine(bare: MachineSpec) -> None:
    async with qmpkit.running(bare, paused=True) as vm:
        await vm.reset()
        assert vm.state is State.PAUSED


@pytest.mark.kvm
@pytest.mark.usefixtures("kvm_here")
async def test_a_kvm_guest_stands_still_while_paused(qemu: str) -> None:
    spec = attrs.evolve(qmpkit.load_profile("kvm-tiny"), qemu=qemu, accel="kvm")
    async with qmpkit.running(spec) as vm:
        assert vm.accel == "kvm"
        assert "-enable-kvm" in vm.argv
        assert (await vm.execute("query-kvm"))["enabled"] is True
        await vm.console.expect("qmpkit kvm-tiny guest ready")
        async with vm.paused():
            frozen = await counted(vm)
            await trio.sleep(0.2)
            assert await counted(vm) == frozen
        await vm.console.expect(".")
        await vm.console.expect(".")
        await vm.pause()
        assert await counted(vm) > frozen
        report = await vm.quit()
    assert report.cause is ExitCause.HOST_QUIT
