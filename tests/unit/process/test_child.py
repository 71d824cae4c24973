"""How the end of a child is seen, what is kept of what it said, and that it is not left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from qmpkit.process.child import child
from qmpkit.process.spawner import shared_spawner
from qmpkit.process.status import ExitStatus
from qmpkit.process.tools import run
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["/bin/sh", "-c", "exit 0"], "exit status 0"),
        (["/bin/sh", "-c", "exit 1"], "exit status 1"),
        (["/bin/sh", "-c", "kill -KILL $$"], "killed by SIGKILL"),
        (["/bin/sh", "-c", "kill -40 $$"], "killed by signal 40"),
        (["/bin/sh", "-c", "kill -SEGV $$"], "killed by SIGSEGV"),
    ],
)
async def test_how_a_process_ended(argv: list[str], text: str) -> None:
    status = (await run(argv)).status
    assert str(status) == text
    assert status.success == (text == "exit status 0")


async def test_an_unknown_end_says_so() -> None:
    assert str(ExitStatus()) == "exit status unknown"
    assert not ExitStatus().success


async def test_many_tasks_wait_and_one_may_be_cancelled() -> None:
    ends: list[ExitStatus] = []
    async with child(["/bin/sleep", "1000"]) as process, trio.open_nursery() as nursery:
        assert process.status is None

        async def wait() -> None:
            ends.append(await process.wait())

        for _ in range(10):
            nursery.start_soon(wait)
        with trio.move_on_after(0.01):
            await process.wait()
        assert process.status is None
        process.terminate()
    assert ends == [ExitStatus(signal=signal.SIGTERM)] * 10
    assert await process.wait() == ends[0], "also after the block"
    process.kill()
    process.terminate()


async def test_leaving_the_block_kills() -> None:
    async with leaks(), child(["/bin/sleep", "1000"]) as process:
        pass
    assert process.status == ExitStatus(signal=signal.SIGKILL)


async def test_an_exception_leaves_the_block_as_it_is() -> None:
    async with leaks():
        with pytest.raises(KeyError, match="mine"):
            async with child(["/bin/sleep", "1000"]):
                raise KeyError("mine")


async def test_a_process_that_ignores_sigterm_is_killed_with_the_block() -> None:
    argv = ["/bin/sh", "-c", "trap '' TERM; echo ready >&9; while :; do sleep 0.1; done"]
    reader, writer = os.pipe()
    async with (
        leaks(),
        trio.lowlevel.FdStream(reader) as ready,
        child(argv, fds={9: writer}) as process,
    ):
        os.close(writer)
        await ready.receive_some(100)
        process.terminate()
        with trio.move_on_after(0.1):
            await process.wait()
        assert process.status is None
    assert process.status == ExitStatus(signal=signal.SIGKILL)


async def test_the_whole_group_ends_with_its_leader() -> None:
    argv = ["/bin/sh", "-c", "sleep 1234.5 & exit 3"]
    async with shared_spawner(), leaks(), child(argv) as process:
        assert await process.wait() == ExitStatus(code=3)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_zombie_is_dead() -> None:
    """Nobody has reaped it yet, and still it counts as ended at once."""
    async with shared_spawner() as spawner:
        os.kill(spawner.pid, signal.SIGSTOP)  # so that nobody can reap
        try:
            resumed = False
            async with trio.open_nursery() as nursery:

                async def resume_later() -> None:
                    nonlocal resumed
                    await trio.sleep(0.1)
                    resumed = True
                    os.kill(spawner.pid, signal.SIGCONT)

                nursery.start_soon(resume_later)
                async with child(["/bin/sleep", "1000"]) as process:
                    assert resumed, "the request was answered before the spawner could"
                    os.kill(spawner.pid, signal.SIGSTOP)
                    process.kill()
                    await trio.sleep(0.05)
                    assert state_of(process.pid) == "Z"
                    os.kill(spawner.pid, signal.SIGCONT)
                    assert await process.wait() == ExitStatus(signal=signal.SIGKILL)
        finally:
            os.kill(spawner.pid, signal.SIGCONT)


async def test_stderr_is_complete_when_the_end_is_known() -> None:
    """200 KB are more than a pipe holds: they are read while the process writes and after."""
    script = "import sys; sys.stderr.write('x' * 200_000 + '\\nlast words\\n'); sys.exit(1)"
    for _ in range(5):
        async with child([sys.executable, "-I", "-S", "-c", script]) as process:
            assert await process.wait() == ExitStatus(code=1)
            assert process.stderr_tail.endswith("\nlast words\n")
            assert len(process.stderr_tail) <= 16384


async def test_stdout_goes_where_stderr_goes_unless_mapped() -> None:
    async with child(["/bin/sh", "-c", "echo out; echo err >&2"]) as process:
        await process.wait()
    assert process.stderr_tail == "out\nerr\n"


async def test_a_process_that_left_the_group_cannot_hold_up_the_end() -> None:
    script = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid(); time.sleep(4); os._exit(0)\n"
        "time.sleep(0.2)\n"
    )
    async with child([sys.executable, "-I", "-S", "-c", script]) as process:
        with trio.fail_after(3):
            assert (await process.wait()).success


async def test_stderr_goes_whole_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    script = "for i in range(20_000): print('line', i)"
    async with child([sys.executable, "-c", script], stderr_log=log) as process:
        await process.wait()
    assert log.read_text() == "".join(f"line {i}\n" for i in range(20_000))
    assert log.stat().st_mode & 0o777 == 0o600
    assert process.stderr_tail.endswith("line 19999\n")


async def test_run_gives_input_and_takes_both_outputs() -> None:
    text = os.urandom(300_000)
    done = await run(["/bin/sh", "-c", "cat; echo oops >&2; exit 2"], input=text)
    assert done.stdout == text
    assert done.err == "oops\n"
    assert done.status == ExitStatus(code=2)
    assert done.argv[0] == "/bin/sh"
    assert not done.truncated


async def test_run_keeps_no_more_than_its_limit() -> None:
    done = await run(["/usr/bin/head", "-c", "1000000", "/dev/zero"], output_limit=1000)
    assert done.status.success
    assert done.stdout == bytes(1000)
    assert done.truncated


async def test_cancelling_run_kills_the_program() -> None:
    async with leaks():
        with trio.move_on_after(0.1) as scope:
            await run(["/bin/sleep", "1000"])
        assert scope.cancelled_caught


async def test_forty_children_at_once() -> None:
    async with leaks(), shared_spawner() as spawner:
        async with trio.open_nursery() as nursery:
            ends: list[str] = []

            async def one(number: int) -> None:
                done = await run(["/bin/sh", "-c", f"echo {number}; exit {number}"])
                assert done.status.code == number
                ends.append(done.out.strip())

            for number in range(40):
                nursery.start_soon(one, number)
        assert sorted(ends, key=int) == [str(n) for n in range(40)]
        assert spawner.users == 1


async def use_a_child() -> None:
    async with leaks(), child(["/bin/sleep", "1000"]) as process:
        process.terminate()
        await process.wait()


async def test_cancelled_anywhere_no_child_is_left() -> None:
    assert await cancel_at_every_checkpoint(use_a_child) > 10


async def test_cancelled_anywhere_a_shared_spawner_works_on() -> None:
    async with shared_spawner() as spawner:
        assert await cancel_at_every_checkpoint(use_a_child) > 5
        assert not spawner.lost
        assert (await run(["/bin/true"])).status.success


async def test_run_cancelled_anywhere_leaves_nothing() -> None:
    async def use() -> None:
        async with leaks():
            await run(["/bin/sh", "-c", "cat; echo no >&2"], input=b"x" * 100_000)

    async with shared_spawner() as spawner:
        assert await cancel_at_every_checkpoint(use) > 5
        assert not spawner.lost
