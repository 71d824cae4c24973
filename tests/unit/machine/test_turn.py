"""Whoever changes a machine waits for others who do, and not for its move."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from qmpkit import MachineMoving
from qmpkit.machine.turn import Turn


async def test_changes_come_one_after_the_other() -> None:
    turn, seen = Turn("web"), list[str]()

    async def change() -> None:
        async with turn:
            seen.append("second")

    async with trio.open_nursery() as nursery, turn:
        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        assert turn.locked()
        seen.append("first")
    assert seen == ["first", "second"] and not turn.locked()


async def test_nothing_waits_for_a_move() -> None:
    turn, seen = Turn("web"), list[str]()

    async def departure() -> None:
        async with turn.after_all():
            seen.append("gone")

    async with trio.open_nursery() as nursery, turn.moving("tls://there:1"):
        for asked in (turn, turn.moving("another QEMU")):
            with pytest.raises(MachineMoving, match="'web' is moving to tls://there:1"):
                async with asked:
                    pytest.fail("it had its turn")
        nursery.start_soon(departure)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []
    assert seen == ["gone"]


async def test_a_move_that_waits_for_its_turn_is_one_already() -> None:
    turn = Turn("web")

    async def move() -> None:
        async with turn.moving("there"):
            pytest.fail("it had its turn")

    async with trio.open_nursery() as nursery, turn:
        nursery.start_soon(move)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(MachineMoving):
            turn.must_stay()
        nursery.cancel_scope.cancel()
    turn.must_stay()


async def test_a_move_that_fails_leaves_nothing_refused() -> None:
    turn = Turn("web")
    with pytest.raises(ZeroDivisionError):
        async with turn.moving("there"):
            raise ZeroDivisionError
    async with turn:
        assert turn.locked()
