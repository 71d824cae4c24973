"""A destination of another supervisor, whose other side says what the test wants."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from qmpkit import MigrationFailed
from qmpkit.operations.migration.place import MovePlace
from qmpkit.operations.migration.remote_end import RemoteEnd


class Wire:
    """Answers nothing of note."""

    async def ask(self, what: str, /, **_: Any) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {}


async def test_a_cancellation_hides_no_failure() -> None:
    """It came while the guest was handed over: its type is what tells of that."""
    end = RemoteEnd(Wire(), MovePlace(farm="there"), "mover")  # type: ignore[arg-type]
    with trio.CancelScope() as scope, pytest.raises(MigrationFailed, match="enough"):
        async with end.offered({"id": "it"}):
            scope.cancel()
            with trio.move_on_after(1, shield=True):
                await trio.sleep(0.01)
                raise MigrationFailed("mover", "enough")
