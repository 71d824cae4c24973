"""The spawner: shared, guarding, and what happens when it or we are killed."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmpkit.errors import HostLacks
from qmpkit.process import _spawner_main
from qmpkit.process import spawner as spawner_module
from qmpkit.process.child import child
from qmpkit.process.errors import SpawnerLost, SpawnFailed
from qmpkit.process.launch import Launch
from qmpkit.process.spawner import Spawner, shared_spawner
from qmpkit.process.status import ExitStatus
from qmpkit.process.tools import run
from qmpkit.testing.leaks import leaks, living_with

# Newer Pythons warn of fork in a program with threads; ours does what is allowed there.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def gone(pidfd: int, within: float = 5.0) -> bool:
    """True when the process of *pidfd* is dead, or dies in time."""
    return bool(select.select([pidfd], [], [], within)[0])


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def test_one_spawner_for_all_users_of_a_run() -> None:
    seen: list[Spawner] = []
    async with leaks(), trio.open_nursery() as nursery:
        ready = trio.Event()

        async def use() -> None:
            async with shared_spawner() as spawner:
                seen.append(spawner)
                if len(seen) == 5:
                    ready.set()
                await ready.wait()

        for _ in range(5):
            nursery.start_soon(use)
    assert len(seen) == 5
    assert len(set(map(id, seen))) == 1
    assert seen[0].lost


async def test_it_ends_with_its_last_user_and_another_one_may_follow() -> None:
    async with leaks():
        async with shared_spawner() as first:
            async with shared_spawner() as again:
                assert again is first
            assert (await run(["/bin/true"])).status.success  # it is up, and has its name
            assert command_of(first.pid).strip().endswith("qmpkit-spawner")
            assert name_of(first.pid) == "qmpkit-spawner"
        async with shared_spawner() as second:
            assert second is not first
            assert second.pid != first.pid


async def test_the_first_users_cancellation_does_not_hurt_the_second() -> None:
    async with leaks(), trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            first.cancel()
            nursery.start_soon(run, ["/bin/true"])
            async with shared_spawner():
                pass


def test_runs_in_several_threads_have_spawners_of_their_own() -> None:
    pids: list[int] = []
    barrier = threading.Barrier(3)

    async def main() -> None:
        async with shared_spawner() as spawner:
            pids.append(spawner.pid)
            await trio.to_thread.run_sync(barrier.wait)
            assert (await run(["/bin/true"])).status.success

    with leaks():
        threads = [threading.Thread(target=trio.run, args=(main,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(pids)) == 3


def test_one_run_after_the_other() -> None:
    async def main() -> ExitStatus:
        return (await run(["/bin/true"])).status

    with leaks():
        for _ in range(3):
            assert trio.run(main).success


async def test_it_is_small_and_out_of_the_terminals_reach() -> None:
    async with shared_spawner() as spawner:
        assert (await run(["/bin/true"])).status.success
        assert resident_kib(spawner.pid) < 12 * 1024
        assert os.getsid(spawner.pid) == spawner.pid
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(spawner.pid, number)
        assert (await run(["/bin/true"])).status.success


async def test_a_child_has_room_for_many_descriptors_and_none_of_ours() -> None:
    told = (await run(["/bin/grep", "FDSize", "/proc/self/status"])).stdout
    assert int(told.split()[1]) >= _spawner_main.ROOM_FDS
    listed = (await run(["/bin/ls", "/proc/self/fd"])).stdout
    assert listed.split() == [b"0", b"1", b"2", b"3"]  # the last is its own, of the directory


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_when_it_is_killed_the_children_are_too(number: signal.Signals) -> None:
    argv = ["/bin/sh", "-c", "sleep 2345.5 & exec sleep 2345.5"]
    async with leaks(), shared_spawner() as spawner, child(argv) as process:
        os.kill(spawner.pid, number)
        with trio.fail_after(5):
            assert await process.wait() == ExitStatus()
        assert spawner.lost
        with pytest.raises(SpawnerLost, match="the spawner process has ended"):
            await spawner.spawn(Launch(["/bin/true"]))
        # Whoever comes next gets a new one.
        assert (await run(["/bin/true"])).status.success
    assert living_with("sleep 2345.5") == []


async def test_killed_during_a_request_it_is_lost() -> None:
    async with leaks(), shared_spawner() as spawner, trio.open_nursery() as nursery:
        os.kill(spawner.pid, signal.SIGSTOP)

        async def kill_later() -> None:
            await trio.sleep(0.05)
            os.kill(spawner.pid, signal.SIGKILL)

        nursery.start_soon(kill_later)
        with pytest.raises(SpawnerLost):
            await spawner.spawn(Launch(["/bin/sleep", "1000"]))


async def test_a_cancelled_request_leaves_nothing_to_the_next_one() -> None:
    async with leaks(), shared_spawner() as spawner:
        with trio.CancelScope() as scope:
            scope.cancel()
            await spawner.spawn(Launch(["/bin/sleep", "3456.5"]))
        assert scope.cancelled_caught
        assert living_with("sleep 3456.5") == []
        assert (await run(["/bin/echo", "mine"])).out == "mine\n"


async def test_a_cancelled_request_to_a_stuck_spawner_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is never answered; when the spawner moves again, it ends together with the child."""
    monkeypatch.setattr(spawner_module, "REPLY_GRACE", 0.2)
    monkeypatch.setattr(spawner_module, "CLOSE_GRACE", 0.2)
    async with leaks(), shared_spawner() as spawner:
        os.kill(spawner.pid, signal.SIGSTOP)
        with trio.move_on_after(0.05) as scope:
            await spawner.spawn(Launch(["/bin/sleep", "4567.5"]))
        assert scope.cancelled_caught
        assert spawner.lost
        os.kill(spawner.pid, signal.SIGCONT)
    assert living_with("sleep 4567.5") == []


@contextlib.contextmanager
def few_descriptors(room: int) -> Iterator[None]:
    """This process can open *room* more descriptors, and no more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    fillers = [os.open("/dev/null", os.O_RDONLY) for _ in range(used)]
    highest = max(fillers)
    for fd in fillers[-room:]:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers[:-room]:
            os.close(fd)


@pytest.mark.parametrize("room", range(1, 16))
async def test_at_our_limit_of_descriptors_the_spawner_starts_or_says_so(room: int) -> None:
    async with leaks():
        with few_descriptors(room), contextlib.suppress(OSError, HostLacks, SpawnFailed):
            assert (await run(["/bin/true"])).status.success
        assert (await run(["/bin/true"])).status.success


@pytest.mark.parametrize("room", range(1, 12))
async def test_at_our_limit_of_descriptors_no_child_is_lost(room: int) -> None:
    async with leaks(), shared_spawner() as spawner:
        assert (await run(["/bin/true"])).status.success
        with few_descriptors(room), contextlib.suppress(OSError, SpawnFailed):
            async with child(["/bin/sleep", "5678.5"]) as process:
                process.kill()
                await process.wait()
        assert not spawner.lost
        assert living_with("sleep 5678.5") == []


async def test_a_fork_of_the_program_neither_holds_nor_kills() -> None:
    async with leaks(), child(["/bin/sleep", "1000"]) as process:
        pid = os.fork()
        if pid == 0:
            process.kill()
            process.terminate()
            os._exit(0)
        assert (await trio.to_thread.run_sync(os.waitpid, pid, 0))[1] == 0
        with trio.move_on_after(0.1):
            await process.wait()
        assert process.status is None


FORKING = """
import os, sys, time, trio
from qmpkit.process.child import child

async def main():
    async with child(["/bin/sleep", sys.argv[1]]) as process:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        print(process.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def test_a_fork_that_lives_on_does_not_keep_the_children_alive() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", FORKING, "6789.5"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert program.stdout is not None
    with program, contextlib.ExitStack() as stack:
        stack.callback(os.killpg, program.pid, signal.SIGKILL)
        pidfd = os.pidfd_open(int(program.stdout.readline()))
        stack.callback(os.close, pidfd)
        assert not gone(pidfd, within=0.1)
        program.kill()
        assert gone(pidfd)


def spawn_by_fork(argv: list[str], mapping: list[tuple[int, int]]) -> int:
    return _spawner_main.fork(
        os.fsencode(argv[0]), [os.fsencode(word) for word in argv], {b"A": b"1"}, mapping
    )


def test_without_posix_spawn_a_fork_does_the_same() -> None:
    reader, writer = os.pipe()
    source = os.dup2(writer, 50, inheritable=False)
    os.close(writer)
    argv = [
        "/usr/bin/env",
        "--list-signal-handling",
        "/bin/sh",
        "-c",
        "echo $A; cut -d' ' -f6 /proc/$$/stat >&2",
    ]
    with leaks():
        pid = spawn_by_fork(argv, [(source, 1), (source, 2)])
        assert os.waitpid(pid, 0)[1] == 0
    os.close(source)
    assert os.read(reader, 4096).split() == [b"1", str(pid).encode()]
    os.close(reader)


def test_without_posix_spawn_errors_are_told_too() -> None:
    with leaks():
        with pytest.raises(FileNotFoundError) as caught:
            spawn_by_fork(["/no/such"], [(0, 0)])
        assert caught.value.errno == errno.ENOENT


def test_the_spawner_starts_children_without_posix_spawn() -> None:
    """The whole spawner on a Python whose C library lacks setsid for posix_spawn."""
    lacking = (
        "import os\n"
        "def lacking(*args, **kwargs): raise NotImplementedError\n"
        "os.posix_spawn = lacking\n"
    )

    async def main() -> None:
        async with leaks():
            assert (await run(["/bin/echo", "forked"])).out == "forked\n"

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(spawner_module, "BOOT", lacking + spawner_module.BOOT)
        trio.run(main)


@pytest.mark.parametrize("executable", ["", "/no/such/python"])
async def test_without_an_interpreter_it_says_so(
    executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    async with leaks():
        with pytest.raises(HostLacks, match="cannot start the spawner"):
            await run(["/bin/true"])


async def test_an_application_frozen_into_one_file_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(HostLacks, match="does not know its own interpreter"):
        await run(["/bin/true"])


@pytest.mark.alone
async def test_a_slow_spawner_does_not_hold_up_the_loop() -> None:
    """While a request waits, other tasks go on."""
    async with shared_spawner() as spawner:
        os.kill(spawner.pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, ["/bin/true"])
            start = time.monotonic()
            await trio.sleep(0.05)
            assert time.monotonic() - start < 0.5
            os.kill(spawner.pid, signal.SIGCONT)


async def test_an_interrupted_close_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    async with leaks():
        with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
            async with shared_spawner():
                patch.setattr(trio.lowlevel, "wait_readable", interrupted)
