"""How a migration is called off: QEMU 7.2 is not to be told to cancel while it switches over."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import trio

from qmpkit.machine.saved_state import break_off
from tests.unit.operations.migration.source import Source


class Asked(Source):
    """Fails of a cut connection, when it *has_one*; remembers what changes it."""

    def __init__(self, *, has_one: bool) -> None:
        super().__init__("device")
        self.answer = {"status": "device"}
        self.has_one = has_one
        self.told: list[str] = []

    def asked(self, command: str, arguments: Mapping[str, Any], *, oob: bool) -> None:
        self.told.append(command)
        if command == "migrate_cancel" or self.has_one:
            self.answer = {"status": "failed"}
            self.say("failed")


class Switching(Source):
    """Waits before its switchover, or is past that, and has let go of its images."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.told: list[str] = []

    def asked(self, command: str, arguments: Mapping[str, Any], *, oob: bool) -> None:
        self.told.append(command)
        if command == "migrate_cancel":
            self.now("cancelled")

    def now(self, status: str) -> None:
        self.answer = {"status": status}
        self.say(status)


async def test_one_that_waits_is_cancelled_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Switching("pre-switchover")
    await break_off(source)
    assert source.told == ["yank", "migrate_cancel"] and trio.current_time() == 0.0


async def test_one_into_a_file_is_waited_for_once_it_has_let_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Switching("device")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(break_off, source, is_connected=False))
        await trio.sleep(0.1)
        assert source.told == []
        source.now("completed")
    assert source.told == []


async def test_one_into_a_file_is_cancelled_before_that(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Switching("active")
    await break_off(source, is_connected=False)
    assert source.told == ["migrate_cancel"] and trio.current_time() == 0.0


@pytest.mark.parametrize(
    ("has_one", "told"), [(True, ["yank"]), (False, ["yank", "migrate_cancel"])]
)
async def test_the_connection_is_cut_first(
    has_one: bool, told: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    source = Asked(has_one=has_one)
    await break_off(source)
    assert source.told == told
