"""`qmpkit cp` into a guest without a daemon: a silent pipe holds up nobody who wants to end it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The command with a guest that is only pretended, and says when its file is waited for.
_COPY = """
import sys
from contextlib import asynccontextmanager
from qmpkit._trio import service_nursery
from qmpkit.cli import main, offline_copy
from qmpkit.operations.agent import Agent
from qmpkit.testing.fake import FakeQemu
from tests.unit.operations.guest import Guest

@asynccontextmanager
async def agent_of(seen):
    async with service_nursery() as services:  # like a guest, it outlives the cleanup
        fake = FakeQemu(services, kind="agent")
        guest = Guest(fake)
        agent = Agent(fake.dial(), name="web")
        services.start_soon(agent.serve)
        try:
            yield agent
        finally:
            print(guest.handles, guest.files, flush=True)
            fake.close_fds()

async def waited_for(parts):
    print("waits", flush=True)
    return await really(parts)

really, offline_copy._next = offline_copy._next, waited_for
offline_copy.agent_of = agent_of
offline_copy.living_machine = lambda farm, word: None
sys.exit(main(["cp", sys.argv[1], "a:/x"]))
"""


def _copying(source: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", _COPY, source]
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("source", ["-", "/dev/stdin"])
def test_a_silent_pipe_is_not_waited_for(root: Path, source: str, number: int) -> None:
    with _copying(source) as copying:
        try:
            assert copying.stdout is not None
            assert copying.stderr is not None
            assert copying.stdout.readline() == b"waits\n"
            copying.send_signal(number)
            status = copying.wait(10)
            assert copying.stdout.read() == b"{} {'/x': bytearray(b'')}\n"
            said = copying.stderr.read()
            assert (status, said.splitlines()[-1]) == (130, b"error: interrupted"), said
        finally:
            copying.kill()


def test_pieces_of_a_pipe_are_all_there(root: Path) -> None:
    with _copying("-") as copying:
        try:
            assert copying.stdin is not None
            for piece in (b"a", b"b" * 3):
                copying.stdin.write(piece)
                copying.stdin.flush()
            said, _ = copying.communicate(timeout=20)
        finally:
            copying.kill()
    assert copying.returncode == 0
    assert b"{} {'/x': bytearray(b'abbb')}" in said
