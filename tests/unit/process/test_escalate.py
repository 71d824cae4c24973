"""Ending a process in order."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from qmpkit.errors import QmpkitError
from qmpkit.process.child import Child, child
from qmpkit.process.errors import ProcessStuck
from qmpkit.process.escalate import stop_child
from qmpkit.process.status import ExitStatus
from qmpkit.testing.leaks import leaks

STUBBORN = "trap '' TERM; echo ready >&9; while :; do sleep 0.05; done"
WILLING = "trap 'exit 7' TERM; echo ready >&9; while :; do sleep 0.05; done"


@asynccontextmanager
async def shell(script: str) -> AsyncIterator[Child]:
    """A child that has set up its traps."""
    reader, writer = os.pipe()
    async with (
        trio.lowlevel.FdStream(reader) as ready,
        child(["/bin/sh", "-c", script], fds={9: writer}) as process,
    ):
        os.close(writer)
        await ready.receive_some(100)
        yield process


async def test_one_that_quits_when_asked_is_told_nothing() -> None:
    async with leaks(), shell(STUBBORN) as process:

        async def ask() -> None:
            process.kill()  # stands for a QEMU that obeys `quit`

        assert await stop_child(process, ask=ask, term_grace=0) == ExitStatus(signal=signal.SIGKILL)


async def test_one_that_does_not_quit_is_told_to() -> None:
    async with leaks(), shell(WILLING) as process:

        async def ask() -> None:
            await trio.sleep_forever()

        assert await stop_child(process, ask=ask, quit_grace=0.05) == ExitStatus(code=7)


async def test_one_that_cannot_be_asked_is_told_soon() -> None:
    async with leaks(), shell(WILLING) as process:

        async def ask() -> None:
            raise QmpkitError("the monitor is gone")

        with trio.fail_after(5):
            assert await stop_child(process, ask=ask, quit_grace=1000) == ExitStatus(code=7)


async def test_one_that_heeds_nothing_is_killed() -> None:
    async with leaks(), shell(STUBBORN) as process:
        status = await stop_child(process, term_grace=0.1)
        assert status == ExitStatus(signal=signal.SIGKILL)


async def test_one_that_has_ended_is_left_alone() -> None:
    async with child(["/bin/true"]) as process:
        await process.wait()
        assert await stop_child(process) == ExitStatus(code=0)


async def test_a_defect_in_asking_is_not_hidden() -> None:
    async with leaks(), shell(STUBBORN) as process:

        async def ask() -> None:
            raise KeyError("a defect")

        with pytest.raises(KeyError, match="a defect"):
            await stop_child(process, ask=ask)


class Immortal:
    """A process that the kernel holds."""

    pid = 1
    status = None
    stderr_tail = ""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def wait(self) -> ExitStatus:
        await trio.sleep_forever()
        raise AssertionError

    def terminate(self) -> None:
        self.told.append("terminate")

    def kill(self) -> None:
        self.told.append("kill")


async def test_one_that_survives_everything_is_an_error(autojump_clock: object) -> None:
    process = Immortal()
    asked = []

    async def ask() -> None:
        asked.append(trio.current_time())

    start = trio.current_time()
    with pytest.raises(
        ProcessStuck, match=r"the process \(pid 1\) is still alive 4 s after SIGKILL"
    ):
        await stop_child(process, ask=ask, quit_grace=1, term_grace=2, kill_grace=4)
    assert len(asked) == 1
    assert process.told == ["terminate", "kill"]
    assert trio.current_time() - start == pytest.approx(7)


async def test_cancellation_stops_the_procedure(autojump_clock: object) -> None:
    process = Immortal()
    with trio.move_on_after(1) as scope:
        await stop_child(process, term_grace=2)
    assert scope.cancelled_caught
    assert process.told == ["terminate"]


async def test_under_a_shield_it_works_while_cancelled() -> None:
    async with leaks():
        with trio.CancelScope() as outer:
            async with shell(WILLING) as process:
                outer.cancel()
                with trio.move_on_after(10, shield=True):
                    assert await stop_child(process) == ExitStatus(code=7)
