"""A process that outlives us: not before it is kept, and for ever after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qmpkit.process.child import child
from qmpkit.process.errors import ProcessVanished, SpawnerLost
from qmpkit.process.identity import Identity, Standing, look_for
from qmpkit.process.kept import KeptChild, adopted, kept_child, open_log, tail_of, trim_log
from qmpkit.process.spawner import shared_spawner
from qmpkit.process.status import ExitStatus
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks

SLEEP = ["/bin/sh", "-c", "echo hello >&2; exec sleep 1000"]


@asynccontextmanager
async def logged(argv: Sequence[str], path: Path) -> AsyncIterator[KeptChild]:
    with open_log(path) as log:
        async with kept_child(argv, stderr=path, log=log) as process:
            yield process


def standing_of(identity: Identity) -> Standing:
    standing, pidfd = look_for(identity)
    if pidfd is not None:
        os.close(pidfd)
    return standing


async def has_said(log: Path, text: str) -> None:
    """Wait until a process has printed: it is started long before it comes to that."""
    while not (await trio.Path(log).read_text()).endswith(text):  # noqa: ASYNC110
        await trio.sleep(0.005)


async def gone(identity: Identity) -> Standing:
    """What has become of it within 5 s: the kernel takes its time to end what was killed."""
    with trio.move_on_after(5):
        while standing_of(identity).lives:  # noqa: ASYNC110
            await trio.sleep(0.005)
    return standing_of(identity)


async def test_it_outlives_its_block_and_is_adopted(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "stderr.log"
    async with leaks():
        async with logged(SLEEP, log) as process:
            assert not process.kept
            assert await process.keep()
            identity = process.identity
        assert standing_of(identity) is Standing.ALIVE
        async with adopted(identity, stderr=log) as found:
            assert found.pid == identity.pid
            assert await found.keep()
            await has_said(log, "hello\n")
            found.kill()
            found.kill()
            assert await found.wait() == ExitStatus()
            assert found.stderr_tail == "hello\n"
            assert not await found.keep()
        with pytest.raises(ProcessVanished):
            async with adopted(identity, stderr=log):
                pytest.fail("it was adopted")


async def test_one_that_is_not_kept_ends_with_its_block(tmp_path: Path) -> None:
    async with leaks():
        async with logged(SLEEP, tmp_path / "log") as process:
            identity = process.identity
        assert await gone(identity) is Standing.GONE
        assert process.status == ExitStatus(signal=signal.SIGKILL)


async def test_its_own_end_is_seen_as_any_childs(tmp_path: Path) -> None:
    argv = ["/bin/sh", "-c", "echo word >&2; exit 3"]
    async with leaks(), logged(argv, tmp_path / "log") as process:
        assert await process.wait() == ExitStatus(code=3)
        assert process.stderr_tail == "word\n"
        assert not await process.keep(), "there is nothing to keep"


async def test_its_last_words_are_its_own(tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    said = []
    for words in ("echo first >&2", "exit 1", "echo third >&2"):
        async with logged(["/bin/sh", "-c", words], log) as process:
            await process.wait()
            said.append(process.stderr_tail)
    assert said == ["first\n", "", "third\n"]
    assert log.read_text() == "first\nthird\n"


def test_the_tail_of_a_log_that_was_trimmed_meanwhile_is_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("new\n")
    assert tail_of(tmp_path / "log", begin=1000) == "new\n"


async def test_the_spawners_death_ends_all_but_the_kept(tmp_path: Path) -> None:
    async with (
        leaks(),
        shared_spawner() as spawner,
        logged(SLEEP, tmp_path / "a") as kept,
        logged(SLEEP, tmp_path / "b") as other,
        child(["/bin/sleep", "1000"]) as mere,
    ):
        await kept.keep()
        os.kill(spawner.pid, signal.SIGKILL)
        await mere.wait()
        await other.wait()
        with pytest.raises(SpawnerLost):
            await other.keep()
        assert kept.status is None
        kept.kill()
        assert await kept.wait() == ExitStatus(), "nobody saw how"


async def test_cancelled_anywhere_it_is_kept_or_gone(tmp_path: Path) -> None:
    identities: list[Identity] = []

    async def start() -> None:
        async with logged(SLEEP, tmp_path / "log") as process:
            identities.append(process.identity)
            await process.keep()
            identities.pop()
            process.kill()

    async with leaks(), shared_spawner():
        await cancel_at_every_checkpoint(start)
        for identity in identities:
            if standing_of(identity).lives:
                os.kill(identity.pid, signal.SIGKILL)
                await gone(identity)


PROGRAM = """
import sys, trio
from pathlib import Path
from qmpkit.process.kept import kept_child, open_log

async def main():
    path = Path(sys.argv[1])
    with open_log(path) as log:
        async with kept_child(["/bin/sleep", "1000"], stderr=path, log=log) as process:
            print(process.identity.boot, process.pid, process.identity.started, flush=True)
            if sys.argv[2] == "keep":
                await process.keep()
                print("kept", flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


def killed_program(log: Path, keep: bool) -> Identity:
    argv = [sys.executable, "-c", PROGRAM, str(log), "keep" if keep else "drop"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        boot, pid, started = process.stdout.readline().split()
        if keep:
            process.stdout.readline()
        process.kill()
    return Identity(boot, int(pid), int(started))


@pytest.mark.parametrize("keep", [True, False])
async def test_our_sigkill_ends_it_unless_it_is_kept(tmp_path: Path, *, keep: bool) -> None:
    identity = await trio.to_thread.run_sync(killed_program, tmp_path / "log", keep)
    if not keep:
        assert await gone(identity) is not Standing.ALIVE
        return
    await trio.sleep(0.2)
    async with adopted(identity, stderr=tmp_path / "log") as found:
        found.terminate()
        await found.wait()


def test_a_log_is_trimmed_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(writer, b"a" * 1000 + b"b" * 100)
        trim_log(path, limit=2000)
        assert path.stat().st_size == 1100
        trim_log(path, limit=100)
        os.write(writer, b"c")
        assert path.read_bytes() == b"c"
        assert (tmp_path / "log.1").read_bytes() == b"b" * 100
        trim_log(tmp_path / "none")
    finally:
        os.close(writer)
