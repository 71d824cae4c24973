"""A log that nothing is written to costs next to nothing, and loses nothing when it is."""

from __future__ import annotations

from pathlib import Path

import trio

from qmpkit.process.logs import BoundedLog, bounded_log


async def test_an_idle_log_has_no_writer_and_no_file(tmp_path: Path) -> None:
    async with bounded_log(tmp_path / "log"):
        await trio.testing.wait_all_tasks_blocked()
        assert not [name for name in _tasks() if name.startswith("log writer")]
    assert not (tmp_path / "log").exists()


async def test_what_is_written_in_the_moment_of_the_end_is_there(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        log.write(b"last words")
    assert (tmp_path / "log").read_bytes() == b"last words"


def _tasks() -> list[str]:
    found, left = [], [trio.lowlevel.current_root_task()]
    while left:
        task = left.pop()
        if task is not None:
            found.append(task.name)
            left += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found
