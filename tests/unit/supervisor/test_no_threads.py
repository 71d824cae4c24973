"""A system that allows no more threads, as a container with many QEMUs may: nobody ends for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio._core import _thread_cache

from qmpkit.errors import JournalFailed
from qmpkit.process.logs import BoundedLog, writing
from qmpkit.testing.fake_kept import fake_ground
from tests.unit.supervisor.conftest import spec
from tests.unit.supervisor.kept import lab, on_disk, told

pytestmark = pytest.mark.usefixtures("state")


@contextmanager
def _no_threads() -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_thread_cache.ThreadCache, "start_thread_soon", refuse)
        yield


async def test_a_supervisor_goes_on_when_there_are_some_again(state: Path) -> None:
    async with fake_ground() as ground, lab(ground) as supervisor:
        kept = await supervisor.ensure(spec("a"))
        with _no_threads():
            with pytest.raises(JournalFailed, match="can't start new thread"):
                await supervisor.declare("a", "paused")
            kept.tell("seen", "while there were none")
            await trio.sleep(0.2)  # the event log has tried by then
        await supervisor.declare("a", "paused")
        assert on_disk(state, "a")["declared"] == "paused"
        await trio.sleep(0.2)
        supervisor._log.ring.clear()
        assert "seen" in [it.state for it in await told(supervisor)], "it was written later"


async def test_a_log_loses_what_it_cannot_write(tmp_path: Path) -> None:
    async with writing(BoundedLog(tmp_path / "log")) as log:
        with _no_threads():
            log.write(b"one")
            await log._written.wait()
        log.write(b"two")
        await log._written.wait()
    assert (tmp_path / "log").read_bytes() == b"two"
    assert log.dropped == 3
