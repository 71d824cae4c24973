"""What only a fake does on demand: a QEMU that is deaf, half dead, or speaks nonsense."""

from __future__ import annotations

import signal

import pytest
import trio
from trio.testing import MockClock

from qmpkit.errors import GuestRefused, LaunchFailed, MachineDied
from qmpkit.machine.launch import LaunchOptions, launched
from qmpkit.machine.machine import Graces
from qmpkit.machine.report import ExitCause
from qmpkit.machine.state import State
from qmpkit.operations import power
from qmpkit.process.errors import ProcessStuck
from qmpkit.qmp.errors import MonitorGarbled, MonitorLost
from qmpkit.spec.machine import MachineSpec
from qmpkit.testing.fake import Garbage, HalfSent, HangUp, Late, Lost, Silent
from qmpkit.testing.fake_machine import FakeHost, FakeMachine
from qmpkit.testing.leaks import leaks
from qmpkit.vm import VM
from tests.contract.conftest import faked

BARE = faked(MachineSpec(name="bare"))
GRACES = Graces(quit=10, term=3, kill=5)
TERM, KILL = signal.SIGTERM, signal.SIGKILL


# A start that comes to nothing


async def test_one_that_never_greets(host: FakeHost, autojump_clock: MockClock) -> None:
    host.prepare = lambda machine: setattr(machine.qemu, "silent", True)
    async with leaks():
        with pytest.raises(LaunchFailed) as caught:
            async with launched(BARE, LaunchOptions(ready_within=7), start=host.start):
                pytest.fail("it started")
        assert trio.current_time() == pytest.approx(7, abs=0.1)
    assert str(caught.value) == (
        "machine 'bare' did not start: QEMU did not get ready.\n(it printed nothing)\n"
        "Cure: it was silent for 7 s and was killed; raise `ready_within` if this host is that"
        " slow\nCommand: fake-qemu -name bare"
    )
    assert host["bare"].process.signals == [KILL]


async def test_what_is_made_meanwhile_goes_with_a_start_that_fails(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    host.prepare = lambda machine: setattr(machine.qemu, "silent", True)
    made: list[VM] = []
    async with leaks():
        with pytest.raises(LaunchFailed, match="did not get ready"):
            async with launched(BARE, start=host.start, meanwhile=lambda it: made.append(VM(it))):
                pytest.fail("it started")
    assert [vm.name for vm in made] == ["bare"]


async def test_one_that_ends_before_it_greets(host: FakeHost, autojump_clock: MockClock) -> None:
    def die(machine: FakeMachine) -> None:
        machine.process.stderr_tail = "qemu: Cannot allocate memory\n"
        machine.process.end(1)

    host.prepare = die
    with pytest.raises(LaunchFailed, match="QEMU ended with exit status 1") as caught:
        async with launched(BARE, start=host.start):
            pytest.fail("it started")
    assert caught.value.cure == "give the machine less memory, or free some on this host"


async def test_one_that_hangs_up_and_lives(host: FakeHost, autojump_clock: MockClock) -> None:
    host.prepare = lambda machine: machine.qemu.misbehave("qmp_capabilities", HangUp())
    with pytest.raises(LaunchFailed, match=r"did not get ready.*\n.*\nCure: it closed its monitor"):
        async with launched(BARE, start=host.start):
            pytest.fail("it started")
    assert host["bare"].process.signals == [KILL]


async def test_one_that_speaks_nonsense(host: FakeHost, autojump_clock: MockClock) -> None:
    host.prepare = lambda machine: machine.qemu.misbehave("qmp_capabilities", Garbage())
    with pytest.raises(LaunchFailed, match="Cure: what answered is no QEMU") as caught:
        async with launched(BARE, start=host.start):
            pytest.fail("it started")
    assert isinstance(caught.value.__cause__, MonitorGarbled)
    assert caught.value.status is None


# A stop against resistance


@pytest.mark.parametrize(
    ("ignores", "sent", "took"),
    [
        (set(), [TERM], 10),
        ({TERM}, [TERM, KILL], 13),
    ],
)
async def test_one_that_ignores_quit(
    host: FakeHost,
    autojump_clock: MockClock,
    ignores: set[signal.Signals],
    sent: list[signal.Signals],
    took: float,
) -> None:
    async with leaks(), launched(BARE, start=host.start) as machine:
        fake = host["bare"]
        fake.process.ignores |= ignores
        fake.qemu.on("quit", {})  # yes, it says, and goes on
        report = await machine.stop(GRACES)
        assert trio.current_time() == pytest.approx(took, abs=0.1)
    assert fake.process.signals == sent
    assert report.cause is ExitCause.HOST_QUIT


async def test_one_that_is_silent_from_some_day_on(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with leaks():
        async with launched(BARE, LaunchOptions(graces=GRACES), start=host.start) as machine:
            host["bare"].qemu.misbehave("query-status", Silent())
            host["bare"].qemu.on("quit", {})
            with trio.move_on_after(30) as patience:
                await machine.execute("query-status")
            assert patience.cancelled_caught
        assert trio.current_time() == pytest.approx(40, abs=0.1)
    assert host["bare"].process.signals == [TERM]


async def test_one_that_outlives_sigkill_is_told_of(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    with pytest.raises(ProcessStuck, match=r"still alive 5 s after SIGKILL"):
        async with launched(BARE, start=host.start) as machine:
            fake = host["bare"]
            fake.process.ignores |= {TERM, KILL}
            fake.qemu.on("quit", {})
            try:
                await machine.stop(GRACES)
            finally:
                fake.process.ignores.clear()


async def test_a_cancelled_stop_against_resistance_is_bounded(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with leaks():
        with trio.move_on_after(1):
            async with launched(BARE, LaunchOptions(graces=GRACES), start=host.start):
                host["bare"].process.ignores |= {TERM}
                host["bare"].qemu.on("quit", {})
                await trio.sleep_forever()
        assert trio.current_time() == pytest.approx(14, abs=0.1)
    assert host["bare"].process.signals == [TERM, KILL]


async def test_quit_that_fails_does_not_burn_the_grace(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with launched(BARE, start=host.start) as machine:
        host["bare"].qemu.misbehave("quit", HangUp())
        host["bare"].qemu.on("quit", {})
        await machine.stop(GRACES)
        assert trio.current_time() == pytest.approx(0.5, abs=0.1)
    assert host["bare"].process.signals == [TERM]


# Half dead


async def test_a_lost_monitor_is_no_death(host: FakeHost, autojump_clock: MockClock) -> None:
    async with leaks():
        async with launched(BARE, start=host.start) as machine:
            host["bare"].qemu.hang_up()
            with pytest.raises(MonitorLost, match=r"^machine 'bare': the monitor connection is go"):
                await machine.execute("query-status")
            judged = trio.current_time()
            # From then on it is known: no call waits again for a death that does not come.
            for call in (power.pause, power.resume, power.reset):
                with pytest.raises(MonitorLost):
                    await call(machine)
            assert trio.current_time() == judged
            assert machine.report is None
        assert machine.report is not None
    assert host["bare"].process.signals == [TERM]


async def test_a_reply_torn_by_a_crash_is_a_crash(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with launched(BARE, start=host.start) as machine:
        fake = host["bare"]
        fake.qemu.misbehave("stop", HalfSent())

        def crash(_: object) -> object:
            fake.qemu.after_reply(lambda: fake.process.end(11))
            return {}

        fake.qemu.on("stop", crash)
        with pytest.raises(MachineDied, match=r"'bare' died: QEMU crashed \(exit status 11\)"):
            await power.pause(machine)


async def test_nonsense_on_the_monitor_is_told_as_such(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with launched(BARE, start=host.start) as machine:
        host["bare"].qemu.misbehave("query-status", Garbage())
        for _ in range(2):
            with pytest.raises(MonitorGarbled, match="machine 'bare': the monitor broke the proto"):
                await machine.execute("query-status")
    assert machine.report is not None
    assert host["bare"].process.signals == [TERM]


async def test_a_death_with_an_open_monitor_is_seen(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with leaks(), launched(BARE, start=host.start) as machine:
        host["bare"].process.end(signal.SIGSEGV, hang_up=False)
        report = await machine.wait()
        assert trio.current_time() <= 5.1  # somebody else holds the other end
    assert report.cause is ExitCause.CRASHED


async def test_the_last_words_of_a_monitor_count(host: FakeHost, autojump_clock: MockClock) -> None:
    async with launched(BARE, start=host.start) as machine:
        fake = host["bare"]
        fake.qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        fake.process.end(0)
        assert (await machine.wait()).cause is ExitCause.GUEST_SHUTDOWN


# States that pass, and commands whose outcome is unknown


async def test_a_state_that_is_over_at_once_is_not_missed(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with launched(BARE, start=host.start) as machine:
        qemu = host["bare"].qemu

        def fail_at_once(_: object) -> object:
            qemu.emit("RESUME")
            qemu.emit("BLOCK_IO_ERROR", {"action": "stop", "device": "disk0"})
            qemu.emit("STOP")
            return {}

        qemu.on("cont", fail_at_once)
        await power.resume(machine)
        await machine.reached(State.FAILED)


async def test_a_cancelled_command_takes_effect_or_not(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with launched(BARE, start=host.start) as machine:
        host["bare"].qemu.misbehave("cont", Late(3))
        with trio.move_on_after(1):
            await power.resume(machine)
        assert machine.state is State.RUNNING  # it did: the event says so
        await trio.sleep(5)
        assert machine.qmp.strays.late == 1
        assert (await machine.execute("query-status"))["status"] == "running"


async def test_a_pause_whose_reply_is_lost_is_undone(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with launched(BARE, start=host.start) as machine:
        await power.resume(machine)
        host["bare"].qemu.misbehave("stop", Lost())
        with trio.move_on_after(1):
            async with power.paused(machine):
                pytest.fail("the reply came")
        assert machine.state is State.RUNNING


async def test_a_guest_deaf_to_the_button(host: FakeHost, autojump_clock: MockClock) -> None:
    async with launched(BARE, start=host.start) as machine:
        host["bare"].qemu.obeys_powerdown = False
        await power.resume(machine)
        with pytest.raises(GuestRefused) as caught:
            await power.shutdown(machine, grace=20, escalate=False)
        assert str(caught.value) == (
            "the guest of machine 'bare' refused to power down: still running after 20 s"
        )
        report = await power.shutdown(machine, grace=30)
        assert trio.current_time() == pytest.approx(50, abs=0.1)
    assert report.cause is ExitCause.HOST_QUIT


async def test_a_guest_that_goes_before_it_is_asked_has_obeyed(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    async with launched(BARE, start=host.start) as machine:
        await power.resume(machine)
        fake = host["bare"].qemu
        fake.misbehave("system_powerdown", Lost())
        report = await power.shutdown(machine, grace=20)
    assert report.cause is ExitCause.GUEST_SHUTDOWN
