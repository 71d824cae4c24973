"""The canceller strikes at each checkpoint, once, and reports what it finds."""

from __future__ import annotations

import pytest
import trio

from qmpkit.testing.cancel import cancel_at_every_checkpoint


async def test_it_strikes_at_each_checkpoint_once() -> None:
    reached: list[int] = []

    async def operation() -> None:
        step = 0
        try:
            for step in range(3):  # noqa: B007  used when cancelled
                await trio.lowlevel.checkpoint()
            step = 3
        finally:
            reached.append(step)

    assert await cancel_at_every_checkpoint(operation) == 3
    assert reached == [0, 1, 2, 3]


async def test_tasks_of_the_operation_count_and_others_do_not() -> None:
    async def sleeper() -> None:
        await trio.sleep(0.001)

    async def operation() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper)
            nursery.start_soon(sleeper)

    async with trio.open_nursery() as others:

        async def busy() -> None:
            while True:
                await trio.lowlevel.checkpoint()

        others.start_soon(busy)
        # The nursery waits once, and each sleeper once; their ends are steps too.
        assert 3 <= await cancel_at_every_checkpoint(operation) <= 6
        others.cancel_scope.cancel()


async def test_every_and_limit() -> None:
    runs = 0

    async def operation() -> None:
        nonlocal runs
        runs += 1
        for _ in range(10):
            await trio.lowlevel.checkpoint()

    assert await cancel_at_every_checkpoint(operation, every=4) == 3
    assert runs == 4
    assert await cancel_at_every_checkpoint(operation, limit=2) == 2
    assert runs == 6


async def test_the_check_runs_after_each_run_and_names_the_checkpoint() -> None:
    left: list[str] = []

    async def operation() -> None:
        await trio.lowlevel.checkpoint()
        left.append("something")
        await trio.lowlevel.checkpoint()
        left.clear()

    def check() -> None:
        assert left == []

    with pytest.raises(AssertionError) as caught:
        await cancel_at_every_checkpoint(operation, after=check)
    assert caught.value.__notes__ == ["when cancelled at checkpoint 2"]


async def test_the_check_may_be_async() -> None:
    checks = 0

    async def check() -> None:
        nonlocal checks
        await trio.lowlevel.checkpoint()
        checks += 1

    assert await cancel_at_every_checkpoint(trio.lowlevel.checkpoint, after=check) == 1
    assert checks == 2


async def test_an_error_of_the_operation_goes_through() -> None:
    async def operation() -> None:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as cancelled:
            raise KeyError("swallowed") from cancelled

    with pytest.raises(KeyError) as caught:
        await cancel_at_every_checkpoint(operation)
    assert caught.value.__notes__ == ["when cancelled at checkpoint 1"]


async def test_shielded_cleanup_is_not_cut() -> None:
    cleaned = 0

    async def operation() -> None:
        nonlocal cleaned
        try:
            await trio.lowlevel.checkpoint()
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.lowlevel.checkpoint()
                cleaned += 1

    runs = await cancel_at_every_checkpoint(operation)
    assert cleaned == runs + 1
