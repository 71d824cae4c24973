"""Machines that outlive their supervisor: adopted, known, and never doubled."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, ExitCause, MachineSpec, Supervisor, SupervisorRunning
from qmpkit.supervisor import journal
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, boot_of_the_past, count, end_all, lab
from tests.sizes import NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.usefixtures("places"),
]


@pytest.fixture
def bare(qemu: str) -> MachineSpec:
    """A machine without a guest."""
    return MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")


@pytest.fixture
def counting(qemu: str) -> MachineSpec:
    """A guest that counts in its memory, from its first moment."""
    guests.build_kvm_tiny()
    return attrs.evolve(qmpkit.load_profile("kvm-tiny"), qemu=qemu, accel="tcg")


def tiny(qemu: str) -> MachineSpec:
    return attrs.evolve(qmpkit.load_profile("tiny-microvm"), qemu=qemu, accel="tcg")


async def test_a_machine_outlives_its_supervisor_and_is_adopted(counting: MachineSpec) -> None:
    async with leaks():
        async with lab() as first:
            kept = await first.ensure(counting)
            await kept.wait_running()
            pid = kept.pid
            assert kept.vm is not None
            await kept.vm.console.expect(guests.KVM_TINY_READY)
            await kept.vm.console.expect(".")  # it counts only after its banner
            before = await count(kept)
        async with lab() as second:
            kept = second.kept["kvm-tiny"]
            assert (kept.pid, kept.state, kept.cause) == (pid, "running", "adopted")
            assert await count(kept) > before > 0
            assert kept.vm is not None
            await kept.vm.console.expect(".")
            (row,) = second.table()
            assert (row.declared, row.accel) == ("running", "tcg")
            assert await second.ensure(counting) is kept
            assert kept.pid == pid
        await end_all()


async def test_what_is_declared_holds_over_supervisors(bare: MachineSpec) -> None:
    async with leaks():
        async with lab() as first:
            kept = await first.ensure(bare)
            await first.declare("bare", "paused")
            assert kept.state == "paused"
        async with lab() as second:
            kept = second.kept["bare"]
            assert (kept.state, kept.declared) == ("paused", "paused")
            await second.declare("bare", "stopped")
            assert kept.end is not None
            assert kept.end.cause is ExitCause.HOST_QUIT
        async with lab() as third:
            kept = third.kept["bare"]
            assert (kept.state, kept.declared, kept.pid) == ("gone", "stopped", None)
            await third.declare("bare", "running")
            assert kept.state == "running"
        await end_all()


async def test_a_second_supervisor_is_refused(bare: MachineSpec) -> None:
    async with leaks(), lab():
        with pytest.raises(SupervisorRunning, match=f"run by process {os.getpid()}") as caught:
            async with lab():
                pytest.fail("it was let in")
        assert caught.value.pid == os.getpid()


async def powered_off_in_absence(qemu: str, places: Places, line: str) -> None:
    """A guest that does *line* when no supervisor runs, and is down then."""
    async with lab() as first:
        kept = await first.ensure(tiny(qemu))
        assert kept.vm is not None
        await kept.vm.console.expect("tiny# ")
        await kept.vm.console.send_line(f"echo go''ing; sleep 0.5; {line}")
        await kept.vm.console.expect("going")
        home = kept.home
    async with qmpkit.connect(home.socket("tools")) as qmp:
        with qmp.subscribe("STOP") as stops:
            if (await qmp.execute("query-status"))["running"]:
                await stops.next()
    assert places.qemus(), "it waits to be asked"


async def test_a_guest_that_powers_off_in_our_absence_is_known(qemu: str, places: Places) -> None:
    async with leaks():
        await powered_off_in_absence(qemu, places, "poweroff -f")
        async with lab() as second:
            kept = second.kept["tiny-microvm"]
            with trio.fail_after(10):
                end = await kept.wait_rest()
            assert end is not None
            assert end.cause is ExitCause.GUEST_SHUTDOWN
            assert "the guest shut itself down" in kept.cause
        async with lab() as third:
            kept = third.kept["tiny-microvm"]
            assert (kept.state, kept.declared) == ("gone", "running")
            assert kept.end == end
        await end_all()


async def test_a_panic_in_our_absence_is_answered_by_the_policy(qemu: str, places: Places) -> None:
    async with leaks():
        await powered_off_in_absence(qemu, places, "echo c > /proc/sysrq-trigger")
        async with lab() as second:
            kept = second.kept["tiny-microvm"]
            await kept.until(lambda: kept.state == "restarting")
            assert kept.end is not None
            assert kept.end.cause in (ExitCause.GUEST_PANIC, ExitCause.GUEST_SHUTDOWN)
            await kept.wait_running()
            assert len(kept.record.history.restarts) == 1
        await end_all()


async def test_a_guests_own_end_is_its_own_though_we_quit(qemu: str) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(tiny(qemu), restart="never")
            assert kept.vm is not None
            await kept.vm.console.expect("tiny# ")
            await kept.vm.console.send_line("poweroff -f")
            end = await kept.wait_rest()
            assert end is not None
            assert end.cause is ExitCause.GUEST_SHUTDOWN
            assert kept.report is not None
            assert kept.report.reason == "guest-shutdown"
        await end_all()


async def test_a_killed_machine_starts_again_or_stays(bare: MachineSpec) -> None:
    async with leaks():
        async with lab() as supervisor:
            policy = qmpkit.Restart(policy="on-failure", delay=0.05, intensity=1)
            kept = await supervisor.ensure(bare, restart=policy)
            first = kept.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await kept.until(lambda: kept.state == "running" and kept.pid != first)
            assert kept.pid is not None
            os.kill(kept.pid, signal.SIGKILL)
            await kept.wait_rest()
            assert kept.state == "crash-loop"
            await supervisor.declare("bare", "running")
            assert kept.state == "running"
        await end_all()


async def test_one_that_vanished_in_our_absence(bare: MachineSpec) -> None:
    async with leaks():
        async with lab() as first:
            again = await first.ensure(bare, restart=qmpkit.Restart(delay=0.05))
            stays = await first.ensure(attrs.evolve(bare, name="stays"), restart="never")
            pids = [again.pid, stays.pid]
        for pid in pids:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        async with lab() as second:
            await second.kept["bare"].wait_running()
            kept = second.kept["stays"]
            await kept.wait_rest()
            assert kept.end is not None
            assert kept.end.cause is ExitCause.CRASHED
            assert "QEMU vanished while" in kept.cause
        await end_all()


async def test_a_reboot_of_the_host_starts_what_is_declared(
    bare: MachineSpec, places: Places
) -> None:
    async with leaks():
        async with lab() as first:
            kept = await first.ensure(bare, restart="never")
            await first.ensure(attrs.evolve(bare, name="off"))
            await first.declare("off", "stopped")
            pid = kept.pid
            assert pid is not None
        os.kill(pid, signal.SIGKILL)
        boot_of_the_past(places)
        async with lab() as second:
            await second.kept["bare"].wait_running()
            assert second.kept["off"].pid is None
        await end_all()


async def test_a_silent_machine_holds_up_nobody(bare: MachineSpec) -> None:
    async with leaks():
        async with lab() as first:
            for name in ("silent", "deaf", "well"):
                await first.ensure(attrs.evolve(bare, name=name))
            pids = {name: kept.pid for name, kept in first.kept.items()}
        frozen = [pid for name, pid in pids.items() if name != "well" and pid is not None]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        async with lab() as second:
            kept = second.kept
            assert {name: it.state for name, it in kept.items()} == {
                "deaf": "silent",
                "silent": "silent",
                "well": "running",
            }
            assert {name: it.pid for name, it in kept.items()} == pids
            await second.declare("deaf", "stopped")
            assert kept["deaf"].end is not None
            assert kept["deaf"].end.cause is ExitCause.HOST_QUIT
            os.kill(pids["silent"] or 0, signal.SIGCONT)
            await kept["silent"].wait_running()
        await end_all()


async def test_without_sockets_a_machine_is_shown_and_can_be_stopped(bare: MachineSpec) -> None:
    async with leaks():
        async with lab() as first:
            home = (await first.ensure(bare)).home
        home.socket("qmp").unlink()
        async with lab() as second:
            assert second.kept["bare"].state == "running", "by the second monitor"
        home.socket("tools").unlink()
        async with lab() as third:
            assert third.kept["bare"].state == "unreachable"
            await third.declare("bare", "stopped")
        await end_all()


async def test_another_machine_at_its_monitor_is_left_alone(bare: MachineSpec) -> None:
    async with leaks():
        async with lab() as first:
            mine = await first.ensure(bare)
            other = await first.ensure(attrs.evolve(bare, name="other"))
            pid = other.pid
        for channel in ("qmp", "tools"):
            mine.home.socket(channel).unlink()
            os.link(other.home.socket(channel), mine.home.socket(channel))
        async with lab() as second:
            kept = second.kept
            shown = {kept["bare"].state, kept["other"].state}
            assert "unreachable" in shown or "silent" in shown
            assert kept["other"].pid == pid
            await kept["other"].wait_running()
            await second.declare("bare", "stopped")
            assert kept["other"].state == "running"
        await end_all()


async def test_a_long_root_and_long_names(bare: MachineSpec, tmp_path: Path) -> None:
    """Both directories 200 characters deep: the sockets go where their paths fit."""
    root = tmp_path
    while len(str(root)) < 200:
        root = root / ("y" * 40)
    root.mkdir(parents=True)
    name, machine = "s" * 64, "m" * 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QMPKIT_STATE_DIR", str(root / "state"))
        patch.setenv("QMPKIT_RUNTIME_DIR", str(root / "run"))
        async with Supervisor(name, keep=True) as first:
            kept = await first.ensure(attrs.evolve(bare, name=machine))
            pid, home = kept.pid, kept.home
            assert len(str(home.socket("x" * 20))) <= 107
            assert home.sockets.stat().st_mode & 0o777 == 0o700
            assert home.socket("qmp").stat().st_mode & 0o777 == 0o600
        async with Supervisor(name, keep=True) as second:
            assert second.kept[machine].pid == pid
            assert second.kept[machine].state == "running"
            await second.declare(machine, "stopped")
            await second.forget(machine)
        assert not home.sockets.parent.exists()


async def test_a_failed_start_leaves_nothing(bare: MachineSpec, places: Places) -> None:
    broken = attrs.evolve(bare, extra_args=["-device", "no-such-device"])
    async with leaks(), lab() as supervisor:
        with pytest.raises(qmpkit.LaunchFailed, match="'no-such-device' is not a valid device"):
            await supervisor.ensure(broken)
        assert supervisor.table() == ()
        assert not places.records()


async def test_without_descriptors_nothing_starts_and_nothing_ends(bare: MachineSpec) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(bare)
            for spare in range(16):
                another = attrs.evolve(bare, name=f"m{spare}")
                with few_descriptors(spare), trio.move_on_after(1), suppress(qmpkit.QmpkitError):
                    await supervisor.ensure(another)
                assert kept.state == "running"
            assert "m15" in supervisor.kept
        await end_all()


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for fd in taken[:spare]:
            os.close(fd)
        yield
    finally:
        for fd in taken[spare:]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_cancelled_start_leaves_nothing_or_a_machine_on_record(bare: MachineSpec) -> None:
    async with leaks():
        for number in range(12):
            async with lab() as supervisor:
                with trio.move_on_after(0.008 * number) as scope:
                    await supervisor.ensure(bare)
                assert (supervisor.kept == {}) == scope.cancelled_caught
                if supervisor.kept:
                    await supervisor.declare("bare", "stopped")
                    await supervisor.forget("bare")


async def test_an_unwritable_journal_still_lets_us_stop(
    bare: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, entries: object) -> int:
        raise OSError(28, "No space left on device")

    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(bare)
            with monkeypatch.context() as patch, supervisor.subscribe() as happenings:
                patch.setattr(journal, "add", full)
                with pytest.raises(qmpkit.JournalFailed, match=r"No space left.*Cure: free some"):
                    await supervisor.ensure(attrs.evolve(bare, name="more"))
                with pytest.raises(qmpkit.JournalFailed):
                    await supervisor.declare("bare", "paused")
                assert (kept.state, kept.declared) == ("running", "running")
                await supervisor.declare("bare", "stopped")
                assert kept.pid is None
                assert isinstance(kept.not_durable, qmpkit.JournalFailed)
            told = [it.state async for it in happenings if it.machine == "bare"]
            assert "not-durable" in told
            await supervisor.declare("bare", "stopped")
            assert kept.not_durable is None
        await end_all()


async def test_a_disk_that_is_not_as_its_spec_says_is_told(
    bare: MachineSpec, tmp_path: Path
) -> None:
    disk = Disk(file=str(tmp_path / "disk.qcow2"), format="qcow2", make="1MiB")
    async with leaks():
        async with lab() as first:
            kept = await first.ensure(attrs.evolve(bare, machine="q35", disks=[disk]))
            assert kept.vm is not None
            snapshot = {"node-name": "qk-disk0", "snapshot-file": str(tmp_path / "snap.qcow2")}
            await kept.vm.execute("blockdev-snapshot-sync", snapshot | {"snapshot-node-name": "s"})
        async with lab() as second:
            with second.subscribe(since=-1) as events:
                async for it in events:
                    if it.state == "differs":
                        break
            assert it.machine == "bare"
            assert f"disk 'disk0' is on node 's' ({tmp_path / 'snap.qcow2'})" in it.cause
        await end_all()
