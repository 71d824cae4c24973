"""How a migration is called off: QEMU 7.2 is not to be told to cancel while it switches over."""

from __future__ import annotations

from collections.abc import Mapping
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


@pytest.mark.parametrize(
    ("has_one", "told"), [(True, ["yank"]), (False, ["yank", "migrate_cancel"])]
)
async def test_the_connection_is_cut_first(
    has_one: bool, told: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    source = Asked(has_one=has_one)
    await break_off(source)
    assert source.told == told
