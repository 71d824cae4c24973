"""Limits on a child: the kernel's hold from its first moments, its time is watched by us."""

from __future__ import annotations

import json
import resource
import signal
import sys
import time

import pytest
import trio

from qmpkit.process.errors import SpawnFailed
from qmpkit.process.limits import Limits
from qmpkit.process.spawner import shared_spawner
from qmpkit.process.tools import Completed, run
from qmpkit.testing.leaks import leaks

SHOW = """
import json, resource
print(json.dumps([resource.getrlimit(which) for which in
    (resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)]))
"""
SPIN = "while True: pass"


async def python(code: str, limits: Limits | None) -> Completed:
    return await run([sys.executable, "-I", "-S", "-c", code], limits=limits)


async def test_what_the_child_sees() -> None:
    done = await python(SHOW, Limits(cpu=6.5, memory=1 << 30, file_size=4096))
    assert json.loads(done.out) == [[7, 8], [1 << 30, 1 << 30], [4096, 4096]]


async def test_none_is_no_limit() -> None:
    own = [resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE]
    for limits in (None, Limits(), Limits(time=60)):
        done = await python(SHOW, limits)
        assert json.loads(done.out) == [list(resource.getrlimit(which)) for which in own]


LOWERED = """
import resource, sys, trio
from qmpkit.process.limits import Limits
from qmpkit.process.tools import run
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
async def main():
    done = await run([sys.executable, "-c", sys.argv[1]], limits=Limits(file_size=1 << 30))
    print(done.out, done.err)
trio.run(main)
"""


async def test_a_lower_limit_of_ours_stays() -> None:
    """Only root could go above it, and nobody can take back having lowered it."""
    done = await run([sys.executable, "-c", LOWERED, SHOW])
    assert json.loads(done.out)[2] == [1 << 20, 1 << 20], done.err


async def test_cpu() -> None:
    done = await python(SPIN, Limits(cpu=0.2))
    assert done.status.signal == signal.SIGXCPU
    assert not done.timed_out


async def test_memory() -> None:
    done = await python("x = bytearray(1 << 28)", Limits(memory=1 << 27))
    assert "MemoryError" in done.err


@pytest.mark.parametrize("ignoring", ["", "import signal; signal.signal(15, signal.SIG_IGN); "])
async def test_time(ignoring: str) -> None:
    async with leaks():
        started = time.monotonic()
        done = await python(f"{ignoring}print('begun', flush=True)\n{SPIN}", Limits(time=0.2))
        took = time.monotonic() - started
    assert done.timed_out
    assert done.out == "begun\n"
    assert done.status.signal == (signal.SIGKILL if ignoring else signal.SIGTERM)
    assert 0.2 <= took < 5


async def test_what_ends_in_time_is_not_touched() -> None:
    done = await python("print('done')", Limits(time=60))
    assert done.status.success
    assert not done.timed_out


async def test_an_impossible_limit_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Limits):
        def rlimits(self) -> list[tuple[int, int, int]]:
            return [(999, 1, 1)]

    async with leaks(), shared_spawner():
        with pytest.raises(SpawnFailed, match="cannot limit what it may use: Invalid"):
            await python(SPIN, Wrong())
        done = await python("print('the spawner goes on')", None)
    assert done.status.success


async def test_output_is_told_as_it_comes() -> None:
    told = bytearray()
    code = "import sys; print('a', flush=True); sys.stdin.readline(); print('b')"
    done = await run([sys.executable, "-c", code], input=b"\n", on_stdout=told.extend)
    assert bytes(told) == done.stdout == b"a\nb\n"
    with trio.CancelScope() as scope:
        await run([sys.executable, "-c", "print('x')"], on_stdout=lambda chunk: scope.cancel())
    assert scope.cancelled_caught
