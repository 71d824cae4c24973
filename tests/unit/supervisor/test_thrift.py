"""What a machine's way through life costs: no more is written, and asked for, than need be."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from qmpkit.process.entries import add
from qmpkit.supervisor import journal
from qmpkit.supervisor.record import Record
from qmpkit.testing.fake_kept import FakeKept, fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab, on_disk


async def _quit(fake: FakeKept, _: dict[str, Any]) -> dict[str, Any]:
    """QEMU tells that it shuts down some time before it has ended."""
    fake.qemu.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    await trio.sleep(0.2)  # enough to write that down, which nobody should
    fake.end(0)
    return {}


async def test_a_start_and_an_ordered_stop_write_little(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def counted(path: Path, batch: dict[str, str | None]) -> int:
        phases = (Record.from_json(text).phase for text in batch.values() if text is not None)
        written.extend(phases)
        return add(path, batch)

    monkeypatch.setattr(journal, "add", counted)
    async with fake_ground() as ground, lab(ground) as supervisor:
        await supervisor.ensure(spec("a"), paused=True)
        assert written[:2] == ["starting", "starting"], "what is wanted, then who it is"
        assert written[2:] in ([], ["up"])
        written.clear()
        ground["a"].qemu.on("quit", partial(_quit, ground["a"]))
        await supervisor.declare("a", "stopped")
        assert written == ["up", "down"], "what is wanted, then how it has ended"
        assert on_disk(state, "a")["end"]["cause"] == "host quit"
