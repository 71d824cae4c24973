"""However Python ends, no QEMU of ours lives on."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qmpkit.testing.leaks import living_with
from tests.sizes import LATE_KILL_AFTER, PYTHON_KILLS, QEMU_VERSIONS

pytestmark = pytest.mark.live

KILLS_UP_TO = 0.030  # seconds after the start that Python is killed

# A program as a user may write it: the QEMU is bound to the block, and to nothing else.
PROGRAM = """
import socket, sys, trio
from qmpkit.process.child import child

async def main():
    ours, theirs = socket.socketpair()
    monitor = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    print("go", flush=True)
    async with child(sys.argv[1:], fds={9: theirs.fileno()}) as qemu:
        theirs.close()
        await monitor.receive_some(4096)
        print(qemu.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def bare(qemu: str, token: str, *more: str) -> list[str]:
    monitor = ["-chardev", "socket,id=m,fd=9", "-mon", "chardev=m,mode=control"]
    return [qemu, "-M", "none", "-nodefaults", "-display", "none", "-name", token, *monitor, *more]


@asynccontextmanager
async def program(argv: list[str], token: str) -> AsyncIterator[trio.Process]:
    """The program at the point where it starts its QEMU."""
    env = {**os.environ, "QMPKIT_TEST_TOKEN": token}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", PROGRAM, *argv], stdout=subprocess.PIPE, env=env
    )
    try:
        assert await line_of(process) == "go"
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def line_of(process: trio.Process) -> str:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):  # unbuffered, Python writes the newline by itself
        more = await process.stdout.receive_some(1)  # its next line may be there already
        assert more, "the program has ended"
        line += more
    return line.decode().strip()


async def none_left(token: str) -> None:
    """The kernel has two seconds to end what was killed."""
    with trio.move_on_after(2):
        while living_with(token):  # noqa: ASYNC110  processes that are not ours tell us nothing
            await trio.sleep(0.01)
    assert living_with(token) == []


@pytest.fixture
def token() -> str:
    return f"orphan-{secrets.token_hex(6)}"


@pytest.mark.bound(600)
async def test_python_is_killed_within_a_start(qemu: str, token: str) -> None:
    for number in range(PYTHON_KILLS):
        async with program(bare(qemu, token), token):
            await trio.sleep(KILLS_UP_TO * number / (PYTHON_KILLS - 1))
        await none_left(token)


async def test_python_is_killed_as_soon_as_qemu_runs(qemu: str, token: str) -> None:
    async with program(bare(qemu, token), token) as process:
        pid = int(await line_of(process))
        assert pid in living_with(token)
    await none_left(token)


async def test_python_is_killed_later(qemu: str, token: str) -> None:
    """An idle worker thread ends after ten seconds; no child may depend on one."""
    async with program(bare(qemu, token), token) as process:
        pid = int(await line_of(process))
        await trio.sleep(LATE_KILL_AFTER)
        assert pid in living_with(token)
    await none_left(token)


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_python_is_killed_and_qemu_belongs_to_another_user(
    qemu: str, qemu_version: str, token: str
) -> None:
    """A change of user clears a parent-death signal; the spawner does not rely on one."""
    if os.geteuid() != 0:
        pytest.skip("needs root: CAP_SETUID, for QEMU to become the user nobody")
    switch = ["-runas", "nobody"] if qemu_version == "7.2" else ["-run-with", "user=nobody"]
    async with program(bare(qemu, token, *switch), token) as process:
        pid = int(await line_of(process))
        while user_of(pid) == 0:  # noqa: ASYNC110  QEMU tells nobody
            await trio.sleep(0.005)
        assert pid in living_with(token)
    await none_left(token)


async def test_the_spawner_is_killed(qemu: str, token: str) -> None:
    """Python sees it and kills what the spawner had started, for nobody else would any more."""
    async with program(bare(qemu, token), token) as process:
        pid = int(await line_of(process))
        os.kill(parent_of(pid), signal.SIGKILL)
        with trio.move_on_after(2):
            while pid in living_with(token):  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert pid not in living_with(token)
        assert process.poll() is None
    await none_left(token)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
