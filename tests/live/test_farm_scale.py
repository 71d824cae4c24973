"""Many kept machines: how fast they start, and what having them costs.

Limits that the noise of a shared machine would break are wide in the plain run and the
product's own with `--long`; that of the start is relative to a bare script in the same run,
that of `ps` to an interpreter that does nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from qmpkit import MachineSpec, Supervisor
from qmpkit.cli.daemon import Daemon, find_daemon
from qmpkit.cli.farm_jobs import followed
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, end_all, lab
from tests.sizes import FARM_EVENTS, FARM_MACHINES, LONG, NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.usefixtures("places"),
    pytest.mark.bound(120 + 2 * FARM_MACHINES),
]

BARE = Path(__file__).parents[2] / "scripts/bench/peers/farm_bare.py"

RATE = 0.9 if LONG else 0.25  # of the bare script's
MEMORY, MEMORY_EACH = 60_000_000, 150_000  # bytes of the supervisor, and for each machine
IDLE, IDLE_FOR = (0.005, 20.0) if LONG else (0.03, 2.0)  # of a core, seconds
LIST = 0.05 if LONG else 0.5  # seconds of the API
PS, PS_TIMES = 0.3, 27  # seconds of the command, or so many times Python's own start
EVENT = 0.01 if LONG else 0.25  # seconds to a subscriber, p99
TRIES = 5 if LONG else 3


def farm(qemu: str) -> list[MachineSpec]:
    board = MachineSpec(machine="microvm", qemu=qemu, accel="tcg", memory="64MiB")
    return [attrs.evolve(board, name=f"vm{number}") for number in range(FARM_MACHINES)]


async def have(supervisor: Supervisor, specs: Sequence[MachineSpec]) -> None:
    async with trio.open_nursery() as nursery:
        for spec in specs:
            nursery.start_soon(lambda it: supervisor.ensure(it, paused=True), spec)


def bare(argv: Sequence[str]) -> float:
    """Seconds a machine that a bare script takes to start as many by the same command."""
    sockets = [word for word in argv if word.startswith("socket,")]
    words = list(argv)
    for number, word in enumerate(sockets):
        words[words.index(word)] = word.replace(f"fd={number + 3},", f"fd={{{number}}},")
    load = {"argv": words, "sockets": len(sockets), "machines": FARM_MACHINES}
    load["at_once"] = 2 * (os.cpu_count() or 1) + 4  # as a Supervisor
    command = [sys.executable, str(BARE), json.dumps(load)]
    env = {**os.environ, "PYTHONPATH": str(BARE.parents[1])}
    printed = subprocess.run(command, capture_output=True, check=True, timeout=300, env=env).stdout
    return float(json.loads(printed)["start_many"])


async def test_many_start_nearly_as_fast_as_a_bare_script_starts_them(
    qemu: str, places: Places
) -> None:
    specs = farm(qemu)
    async with leaks():
        async with lab() as supervisor:
            began = trio.current_time()
            await have(supervisor, specs)
            ours = (trio.current_time() - began) / FARM_MACHINES
            assert {kept.state for kept in supervisor.kept.values()} == {"paused"}
            assert len(places.qemus()) == FARM_MACHINES
            argv = supervisor.kept["vm0"].record.argv
            await supervisor.stop_kept(powerdown_grace=0.0)
        theirs = await trio.to_thread.run_sync(bare, argv)
        await end_all()
    assert theirs / ours >= RATE, f"ours {ours * 1e3:.1f} ms a machine, bare {theirs * 1e3:.1f} ms"


async def test_a_daemon_with_many_machines_is_small_idle_and_quick(qemu: str) -> None:
    async with leaks():
        async with lab() as supervisor:
            await have(supervisor, farm(qemu))
        with served() as daemon:
            pid = daemon.get()["pid"]
            await trio.sleep(0.5)  # for what the adoption leaves to do
            idle = await used(pid, IDLE_FOR)
            lists = [timed_list(daemon) for _ in range(TRIES * 4)]
            command = await trio.to_thread.run_sync(best, ["-m", "qmpkit.cli", "ps", "--json"])
            python = await trio.to_thread.run_sync(best, ["-c", "pass"])
            late = await trio.to_thread.run_sync(latencies, daemon)
            memory = resident(pid)
        await end_all()
    listed, p99 = statistics.median(lists), late[len(late) * 99 // 100]
    seen = f"{memory / 1e6:.1f} MB, {idle:.2%} of a core, list {listed * 1e3:.0f} ms"
    seen += f", ps {command * 1e3:.0f} ms (Python {python * 1e3:.0f} ms)"
    seen += f", events {p99 * 1e3:.1f} ms p99, {late[-1] * 1e3:.1f} ms at most"
    print(seen)
    assert memory <= MEMORY + MEMORY_EACH * FARM_MACHINES, seen
    assert idle < IDLE, seen
    assert listed < LIST, seen
    assert command < max(PS, PS_TIMES * python), seen
    assert p99 < EVENT, seen


@contextmanager
def served() -> Iterator[Daemon]:
    reads, writes = os.pipe()
    words = ["serve", "--farm", "lab", "--ready-fd", str(writes)]
    process = subprocess.Popen([sys.executable, "-m", "qmpkit.cli", *words], pass_fds=[writes])
    os.close(writes)
    try:
        with os.fdopen(reads, "rb") as ready:
            assert ready.readline() == b"ready\n"
        yield find_daemon("lab")
    finally:
        process.terminate()
        process.wait(30)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def used(pid: int, seconds: float) -> float:
    """The share of a core that all threads of a process use meanwhile."""
    before = on_cpu(pid)
    await trio.sleep(seconds)
    return (on_cpu(pid) - before) / seconds


def on_cpu(pid: int) -> float:
    """Seconds so far, of threads that have ended too: the clock is the process's (Linux)."""
    return time.clock_gettime((~pid << 3) | 2)


def timed_list(daemon: Daemon) -> float:
    began = time.perf_counter()
    rows = daemon.get("machines")["machines"]
    took = time.perf_counter() - began
    assert [row["state"] for row in rows] == ["paused"] * FARM_MACHINES
    return took


def best(words: list[str]) -> float:
    """The shortest of some runs of a whole command, the first not counted."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    took = []
    for _ in range(TRIES + 1):
        began = time.perf_counter()
        command = [sys.executable, *words]
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL, env=env)
        took.append(time.perf_counter() - began)
    return min(took[1:])


def latencies(daemon: Daemon) -> list[float]:
    """How late events come to a client, in order of size."""
    late: list[float] = []
    with listening(daemon, late):
        for number in range(FARM_EVENTS // 2):
            name = f"vm{number % FARM_MACHINES}"
            for action in ("resume", "pause"):
                job = daemon.post("machines", name, action)
                followed(daemon, job["job"], "a step", quiet=True)
    assert len(late) >= FARM_EVENTS
    return sorted(late)


@contextmanager
def listening(daemon: Daemon, late: list[float]) -> Iterator[None]:
    events = daemon.events("events", beat=100)
    next(events)  # a sign of life: it has begun
    over = threading.Event()

    def listen() -> None:
        for name, data in events:
            if name == "happening":
                late.append(time.time() - data["time"])
            elif over.is_set():  # nothing more has come for a while
                return

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
