"""What a child is given, and what is said when it cannot be started."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from qmpkit.errors import BinaryMissing
from qmpkit.process.child import child
from qmpkit.process.errors import SpawnFailed
from qmpkit.process.launch import FDS_LIMIT
from qmpkit.process.spawner import shared_spawner
from qmpkit.process.tools import run
from qmpkit.testing.leaks import leaks

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
