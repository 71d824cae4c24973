"""The supervisor of kept machines is killed at random moments: nothing is lost or doubled."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from qmpkit import MachineSpec, Supervisor
from qmpkit.process.identity import Identity
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, count, end_all, lab
from tests.sizes import ADOPTED, KEPT_MACHINES, NEWEST, SUPERVISOR_KILLS

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.usefixtures("places"),
]

# The steady machines are made once and left alone; the others are changed all the time.
PROGRAM = """
import contextlib, inspect, os, pkgutil, random, signal, sys, attrs, qmpkit, trio
from qmpkit.supervisor import journal

qemu, steady, changing, seed, *death = sys.argv[1:]
steady, changing, dice = int(steady), int(changing), random.Random(seed)

def die_in(place, name, call):
    # The so-and-so-many-th time that this step is taken is the last thing that is done.
    owner, calls, early = pkgutil.resolve_name(place), 0, dice.random() < 0.5
    step = getattr(owner, name)

    @contextlib.contextmanager
    def maybe_the_last():
        nonlocal calls
        calls += 1
        last = calls == int(call)
        if last and early:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            yield
        finally:  # also when the step is cancelled, or there would be no death at all
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

    async def awaited(*args):
        with maybe_the_last():
            return await step(*args)

    def called(*args):
        with maybe_the_last():
            return step(*args)

    setattr(owner, name, awaited if inspect.iscoroutinefunction(step) else called)

if death:
    die_in(*death)
journal.SPARE = 10_000  # it is compacted often
nice = ["nice", "-n", "19"]  # it counts without pause
kvm_tiny = attrs.evolve(
    qmpkit.load_profile("kvm-tiny"), qemu=qemu, accel="tcg", launcher=nice
)
bare = qmpkit.MachineSpec(qemu=qemu, accel="tcg", memory="16MiB")

def say(*words):
    print(*words, flush=True)

async def change(lab, name):
    while True:
        wanted = dice.choice(["running", "paused", "stopped"])
        try:
            await lab.ensure(attrs.evolve(bare, name=name))
            say("have", name)
            await lab.declare(name, wanted)
        except qmpkit.QmpkitError as error:
            say("error", name, type(error).__name__, str(error).splitlines()[0])
        await trio.sleep(dice.random() * 0.2)

async def main():
    say("open")
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        say("adopted", *sorted(f"{k.name}={k.pid}" for k in lab.kept.values()))
        async with trio.open_nursery() as nursery:
            for number in range(steady):
                kind = bare if number else kvm_tiny  # the first counts
                nursery.start_soon(lab.ensure, attrs.evolve(kind, name=f"steady{number}"))
        say("steady", *(lab.kept[f"steady{number}"].pid for number in range(steady)))
        async with trio.open_nursery() as nursery:
            for number in range(changing):
                nursery.start_soon(change, lab, f"changing{number}")

trio.run(main)
"""

# Where it dies by itself: the write of state, the start and the stop of a machine.
STEPS = (
    ("qmpkit.supervisor.journal", "add"),
    ("qmpkit.supervisor.journal", "compact"),
    ("qmpkit.process.entries", "write_all"),
    ("qmpkit.process.entries", "write_durably"),
    ("qmpkit.machine.keep", "fresh"),
    ("qmpkit.process.spawner:Spawner", "spawn"),
    ("qmpkit.process.kept:KeptChild", "keep"),
    ("qmpkit.machine.machine:Machine", "stop"),
    ("qmpkit.supervisor.life", "discard"),
)


@asynccontextmanager
async def program(*argv: object) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", PROGRAM, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdout.aclose()
            await process.stderr.aclose()


async def said_until(process: trio.Process, wanted: str) -> list[str]:
    """What it says, up to the line that begins with *wanted*."""
    assert process.stdout is not None
    assert process.stderr is not None
    text = b""
    while not any(line.startswith(wanted) for line in text.decode().split("\n")[:-1]):
        more = await process.stdout.receive_some()
        assert more, f"it ended: {text.decode()}{bytes(await process.stderr.receive_some())!r}"
        text += more
    return _whole_lines(text)


async def said_to_the_end(process: trio.Process) -> list[str]:
    """What it says until it has killed itself."""
    assert process.stdout is not None
    assert process.stderr is not None
    text = b"".join([bytes(chunk) async for chunk in process.stdout])
    why = bytes(await process.stderr.receive_some())
    assert await process.wait() == -signal.SIGKILL, why
    return _whole_lines(text)


async def said_within(process: trio.Process, seconds: float) -> list[str]:
    assert process.stdout is not None
    text = b""
    with trio.move_on_after(seconds):
        while more := await process.stdout.receive_some():
            text += more
    return _whole_lines(text)


def _whole_lines(text: bytes) -> list[str]:
    """Without the last one, if it was torn by the kill."""
    return text.decode(errors="replace").split("\n")[:-1]


@pytest.mark.bound(120 + 10 * SUPERVISOR_KILLS * max(1, KEPT_MACHINES // 16))
async def test_the_supervisor_is_killed_again_and_again(qemu: str, places: Places) -> None:
    guests.build_kvm_tiny()
    dice = random.Random(4)
    steady = KEPT_MACHINES // 2
    argv = [qemu, steady, KEPT_MACHINES - steady]
    known: set[str] = set()
    errors: list[str] = []
    async with leaks():
        async with program(*argv, "first") as process:
            pids = (await said_until(process, "steady"))[-1]
            assert pids.startswith("steady")
        before, counted = await _guests(steady)
        for kill in range(SUPERVISOR_KILLS):
            lines = await _killed(dice, *argv, kill)
            known |= {line.split()[1] for line in lines if line.startswith("have ")}
            errors += [line for line in lines if line.startswith("error")]
            assert all(line == pids for line in lines if line.startswith("steady"))
        assert errors == []
        async with lab() as supervisor:
            await _all_as_declared(supervisor, places)
            assert known <= set(supervisor.kept)
        after, counts = await _guests(steady)
        assert after == before
        assert counts > counted > 0
        await end_all()
    assert places.qemus() == []


async def _killed(dice: random.Random, *argv: object) -> list[str]:
    """What a supervisor says that is killed in an adoption, in changes, or in one step of them."""
    moment = dice.choice(["open", "steady", "step"])
    if moment == "step":
        async with program(*argv, *dice.choice(STEPS), dice.randint(1, 8)) as process:
            return await said_to_the_end(process)
    async with program(*argv) as process:
        lines = await said_until(process, moment)
        return lines + await said_within(process, dice.random() ** 2 * 1.5)


async def _guests(steady: int) -> tuple[list[Identity | None], int]:
    """The processes of the steady machines, and how far the first one's guest has counted."""
    async with lab() as supervisor:
        kept = [supervisor.kept[f"steady{number}"] for number in range(steady)]
        assert kept[0].vm is not None
        await kept[0].vm.console.expect(".")  # it counts only after its banner
        return [it.record.identity for it in kept], await count(kept[0])


async def _all_as_declared(supervisor: Supervisor, places: Places) -> None:
    """Every machine is what it is declared to be, and no QEMU but theirs is there."""
    for kept in supervisor.kept.values():
        if kept.declared == "stopped":
            await kept.wait_rest()
        else:
            await kept.until(lambda kept=kept: kept.state == kept.declared)  # type: ignore[misc]
    on_record = sorted(kept.pid for kept in supervisor.kept.values() if kept.pid is not None)
    assert sorted(places.qemus()) == on_record


@pytest.mark.alone
@pytest.mark.bound(60 + 4 * ADOPTED)
async def test_many_are_adopted_at_once(qemu: str, places: Places) -> None:
    bare = MachineSpec(qemu=qemu, accel="tcg", memory="16MiB")
    async with leaks():
        async with lab() as first, trio.open_nursery() as nursery:
            for number in range(ADOPTED):
                nursery.start_soon(_paused, first, attrs.evolve(bare, name=f"vm{number}"))
        begun = trio.current_time()
        async with lab() as second:
            took = trio.current_time() - begun
            assert {kept.state for kept in second.kept.values()} == {"paused"}
            assert len(second.machines) == ADOPTED == len(places.qemus())
        assert took < 1, f"{took:.2f} s"
        await end_all()


async def _paused(supervisor: Supervisor, spec: MachineSpec) -> None:
    await supervisor.ensure(spec)
    await supervisor.declare(spec.name, "paused")
