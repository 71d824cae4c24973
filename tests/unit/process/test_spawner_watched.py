"""Many wait for the end of one spawner, on the one descriptor that tells of it."""

from __future__ import annotations

import os
import signal

import trio

from qmpkit.process.spawner import shared_spawner
from qmpkit.testing.leaks import leaks


async def test_all_who_wait_are_told_whoever_went_before() -> None:
    told: list[int] = []
    async with leaks(), shared_spawner() as spawner, trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(6)]

        async def watch(number: int) -> None:
            with scopes[number]:
                await spawner.wait_lost()
                told.append(number)

        for number in range(6):
            nursery.start_soon(watch, number)
        await trio.testing.wait_all_tasks_blocked()
        for number in (
            0,
            3,
            1,
        ):  # who watches, one who waits, whoever has come in the first's place
            scopes[number].cancel()
            if number:
                await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(spawner.wait_lost)
        await trio.testing.wait_all_tasks_blocked()
        assert not told
        os.kill(spawner.pid, signal.SIGKILL)
        with trio.fail_after(10):
            await spawner.wait_lost()
            await trio.testing.wait_all_tasks_blocked()
    assert sorted(told) == [2, 4, 5]
