"""One child: what it is given, how its end is seen, what is kept of what it said."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from qmpkit.errors import BinaryMissing
from qmpkit.process.child import child
from qmpkit.process.errors import SpawnFailed
from qmpkit.process.launch import FDS_LIMIT
from qmpkit.process.spawner import shared_spawner
from qmpkit.process.status import ExitStatus
from qmpkit.process.tools import run
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks, living_with

# What a child finds when it starts.
INSPECT = """
import json, os, signal
status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
print(json.dumps({
    "fds": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")},
    "session": os.getsid(0) == os.getpid(),
    "group": os.getpgrp() == os.getpid(),
    "blocked": status["SigBlk"].strip(),
    "ignored": status["SigIgn"].strip(),
    "cwd": os.getcwd(),
}))
"""


async def inspect(
    *, fds: dict[int, int] | None = None, cwd: Path | None = None
) -> dict[str, object]:
    # Python itself ignores SIGPIPE and SIGXFSZ, so it is told what exec had left.
    argv = ["/usr/bin/env", "--list-signal-handling", sys.executable, "-I", "-S", "-c", INSPECT]
    done = await run(argv, fds=fds, cwd=cwd)
    assert done.status.success, done.err
    found = dict(json.loads(done.out))
    found["handled"] = done.err
    return found


async def test_a_child_starts_clean() -> None:
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        found = await inspect()
    finally:
        signal.signal(signal.SIGUSR1, ignored)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    assert found["session"]
    assert found["group"]
    assert int(str(found["blocked"]), 16) == 0
    assert found["handled"] == "", "a signal is blocked or ignored"
    assert isinstance(found["fds"], dict)
    assert sorted(found["fds"]) == ["0", "1", "2"]


async def test_descriptors_arrive_where_they_should_whatever_their_numbers(tmp_path: Path) -> None:
    """Sources and targets overlap in every way, in the spawner too, which numbers from 3 up."""
    files = {}
    for target in (9, 3, 4, 5, 6, 7, 8, 40):
        (tmp_path / str(target)).write_text(str(target))
        files[target] = os.open(tmp_path / str(target), os.O_RDONLY)
    try:
        found = await inspect(fds=files)
    finally:
        for fd in files.values():
            os.close(fd)
    assert isinstance(found["fds"], dict)
    for target in files:
        assert found["fds"][str(target)] == str(tmp_path / str(target))
    assert len(found["fds"]) == len(files) + 3


async def test_one_descriptor_may_arrive_twice() -> None:
    reader, writer = os.pipe()
    argv = ["/bin/sh", "-c", "echo a >&5; echo b >&6"]
    try:
        async with child(argv, fds={5: writer, 6: writer}) as process:
            os.close(writer)
            assert (await process.wait()).success
        assert os.read(reader, 100) == b"a\nb\n"
    finally:
        os.close(reader)


async def test_as_many_descriptors_as_the_kernel_passes() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    try:
        done = await run(["/bin/ls", "/proc/self/fd"], fds=dict.fromkeys(range(3, FDS_LIMIT), null))
        assert done.status.success
        assert {str(n) for n in range(FDS_LIMIT)} <= set(done.out.split())
        with pytest.raises(ValueError, match="251 can be passed"):
            await run(["/bin/true"], fds=dict.fromkeys(range(3, FDS_LIMIT + 1), null))
    finally:
        os.close(null)


async def test_a_closed_descriptor_is_named_as_the_fault() -> None:
    async with leaks():
        with pytest.raises(SpawnFailed, match="cannot pass on its file descriptors") as caught:
            await run(["/bin/true"], fds={5: 9999})
    assert caught.value.stage == "fds"


async def test_a_descriptor_number_beyond_the_limit_is_refused() -> None:
    with pytest.raises(SpawnFailed) as caught:
        await run(["/bin/true"], fds={1 << 30: 0})
    assert caught.value.stage == "fds"


async def test_an_environment_of_300_kilobytes() -> None:
    env = {f"NAME{n}": "x" * 100_000 for n in range(3)}
    done = await run(["/usr/bin/env"], env=env)
    assert done.status.success
    assert len(done.stdout) > 300_000


async def test_an_environment_too_big_for_exec_is_an_error_of_its_own() -> None:
    with pytest.raises(SpawnFailed, match="Argument list too long"):
        await run(["/usr/bin/env"], env={"NAME": "x" * 200_000})


async def test_the_environment_is_exactly_what_was_given() -> None:
    done = await run(["/usr/bin/env"], env={"A": "1", "B": "zwei drei"})
    assert sorted(done.out.splitlines()) == ["A=1", "B=zwei drei"]


async def test_names_that_are_not_unicode_pass_through(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    done = await run(["/bin/echo", "-n", name])
    assert done.stdout == b"caf\xe9"


async def test_working_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    assert (await run(["/bin/pwd"])).out.strip() == str(tmp_path)
    assert (await run(["/bin/pwd"], cwd="below")).out.strip() == str(tmp_path / "below")
    assert (await run(["/bin/pwd"], cwd="/")).out.strip() == "/"


async def test_a_missing_working_directory(tmp_path: Path) -> None:
    with pytest.raises(SpawnFailed) as caught:
        await run(["/bin/true"], cwd=tmp_path / "no")
    assert str(caught.value) == (
        f"cannot start '/bin/true': cannot enter the directory '{tmp_path}/no': "
        "No such file or directory"
    )


async def test_a_missing_program() -> None:
    with pytest.raises(BinaryMissing, match="the program 'no-such-program' is not on PATH"):
        await run(["no-such-program"])
    with pytest.raises(BinaryMissing, match="the program '/no/such' does not exist"):
        await run(["/no/such"])


async def test_path_is_that_of_the_childs_environment(tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to("/bin/true")
    with pytest.raises(BinaryMissing):
        await run(["mine"])
    assert (await run(["mine"], env={"PATH": f"/no:{tmp_path}"})).status.success


async def test_a_program_that_is_not_executable(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("")
    with pytest.raises(SpawnFailed, match=r"Permission denied. Cure: make .* executable"):
        await run([str(tmp_path / "tool")])


async def test_a_script_whose_interpreter_is_missing(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(SpawnFailed, match="install the interpreter"):
        await run([str(script)])


@pytest.mark.parametrize(
    ("argv", "env"),
    [([], {}), ([""], {}), (["a\0b"], {}), (["true"], {"a=b": ""}), (["true"], {"": "x"})],
)
async def test_what_no_kernel_takes_is_refused_before_anything(
    argv: list[str], env: dict[str, str]
) -> None:
    async with shared_spawner() as spawner:
        with pytest.raises(ValueError, match=r"a command needs|NUL|environment variable"):
            await run(argv, env=env)
        assert not spawner.lost


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
    async with child(argv) as process:
        assert await process.wait() == ExitStatus(code=3)
        assert living_with("sleep 1234.5") == []


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
