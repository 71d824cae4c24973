"""The leak finder finds each kind of leak, and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmpkit.process.child import child
from qmpkit.process.rundir import runtime_root
from qmpkit.process.spawner import shared_spawner
from qmpkit.testing.leaks import Leaked, leaks, living_with


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory that no other test uses at the same time."""
    path = tempfile.mkdtemp(prefix="qk-", dir="/tmp")
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", path)
    yield Path(path)
    shutil.rmtree(path)


def found_by(finder: leaks) -> list[str]:
    with pytest.raises(Leaked) as caught:
        finder.__exit__(None, None, None)
    assert str(caught.value).startswith(f"{len(caught.value.found)} left behind:\n  - ")
    return list(caught.value.found)


def test_nothing_is_nothing() -> None:
    marks = set(os.environ)
    with leaks():
        pass
    assert set(os.environ) == marks


def test_a_process() -> None:
    here, there = socket.socketpair()
    with here, there:
        finder = leaks(grace=0).__enter__()
        end = there.fileno()
        process = subprocess.Popen(["/bin/cat", "-u"], stdin=end, stdout=end)
        try:
            here.send(b"?")
            here.recv(1)  # it has a command line by then, which it lacks for a moment
            [found] = found_by(finder)
        finally:
            process.kill()
            process.wait()
    assert found.startswith(f"process {process.pid} (state ")
    assert found.endswith("/bin/cat -u")


def test_a_zombie() -> None:
    finder = leaks(grace=0).__enter__()
    process = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        [found] = found_by(finder)
    finally:
        process.wait()
    assert f"process {process.pid} (zombie" in found


def test_a_process_that_has_lost_its_parents() -> None:
    finder = leaks(grace=0).__enter__()
    orphan = (
        "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{orphan}; os.close(1); time.sleep(100)"],
        check=True,
        stdout=subprocess.PIPE,
    )
    pid = int(done.stdout)
    try:
        [found] = found_by(finder)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert found.startswith(f"process {pid} ")


def test_a_descriptor() -> None:
    finder = leaks(grace=0).__enter__()
    with socket.socket() as sock:
        [found] = found_by(finder)
        assert found.startswith(f"file descriptor {sock.fileno()}: socket:[")


def test_a_descriptor_with_a_number_used_before(tmp_path: Path) -> None:
    first = os.open("/dev/null", os.O_RDONLY)
    finder = leaks(grace=0).__enter__()
    os.close(first)
    (tmp_path / "file").touch()
    second = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert second == first
        assert found_by(finder) == [f"file descriptor {second}: {tmp_path}/file"]
    finally:
        os.close(second)


def test_a_directory() -> None:
    finder = leaks(grace=0).__enter__()
    path = runtime_root() / f"vm.{os.getpid()}.abcd"
    path.mkdir()
    assert found_by(finder) == [f"runtime directory {path}"]


def test_a_directory_of_another_program_is_its_own_affair(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QMPKIT_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(root))
    with leaks(grace=0):
        (runtime_root() / "vm.1.abcd").mkdir()


async def test_a_task() -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(Leaked) as caught:
            async with leaks(grace=0):
                nursery.start_soon(trio.sleep_forever, name="forgotten")
        nursery.cancel_scope.cancel()
    assert caught.value.found == ("task forgotten",)


async def test_what_needs_a_moment_gets_it() -> None:
    async with trio.open_nursery() as nursery, leaks(grace=5):
        nursery.start_soon(trio.sleep, 0.1)


async def test_children_of_a_spawner_held_outside() -> None:
    async with shared_spawner():
        async with leaks():
            pass
        with pytest.raises(Leaked) as caught:
            async with leaks(grace=0):
                held = child(["/bin/sleep", "1000"])
                process = await held.__aenter__()
        assert any(f"process {process.pid} " in found for found in caught.value.found)
        assert any("task " in found for found in caught.value.found)
        await held.__aexit__(None, None, None)


async def test_an_error_goes_through_with_a_note() -> None:
    with pytest.raises(KeyError) as caught:
        async with leaks(grace=0):
            reader, writer = os.pipe()
            raise KeyError("mine")
    os.close(reader)
    os.close(writer)
    [note] = caught.value.__notes__
    assert note.startswith("2 left behind:")


async def test_a_cancellation_hides_no_leak() -> None:
    with pytest.raises(Leaked), trio.CancelScope() as scope:
        async with leaks(grace=0):
            reader, writer = os.pipe()
            scope.cancel()
            await trio.sleep_forever()
    os.close(reader)
    os.close(writer)


async def test_inside_a_run_it_must_not_block() -> None:
    with pytest.raises(RuntimeError, match="async with leaks"):
        leaks().__enter__()


def test_the_dead_do_not_live() -> None:
    process = subprocess.Popen(["/bin/sleep", "7890.5"])
    assert process.pid in living_with("sleep 7890.5")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert living_with("sleep 7890.5") == []
    process.wait()
