"""The first of many entries do not wait for the last."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import trio

from qmpkit._trio import service_nursery
from qmpkit.errors import JournalFailed
from qmpkit.process import durable
from qmpkit.process.entries import add, entries_in
from qmpkit.supervisor import journal
from qmpkit.supervisor.journal import TOGETHER, Journal, read_records
from tests.unit.supervisor.test_journal import record

NAMES = [f"m{number}" for number in range(3 * TOGETHER)]


async def test_hundreds_are_written_in_parts_and_in_their_order(tmp_path: Path) -> None:
    batches: list[list[str]] = []

    def seen(path: Path, batch: dict[str, str | None]) -> int:
        batches.append(list(batch))
        return add(path, batch)

    with mock.patch.object(journal, "add", seen):
        async with service_nursery() as services:
            it = Journal(tmp_path / "journal")
            tickets = [it.post(record(name)) for name in NAMES]
            services.start_soon(it.run)
            await tickets[0].durable()
            assert len(batches) < 3, "the rest is still to come"
            for ticket in tickets:
                await ticket.durable()
    assert [name for batch in batches for name in batch] == NAMES
    assert max(map(len, batches)) == TOGETHER


async def test_what_nobody_waits_for_is_written_after_a_part_that_was_full(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        it = Journal(tmp_path / "journal")
        for name in NAMES:
            it.jot(record(name))
        nursery.start_soon(it.run)
        with trio.fail_after(30):
            while len(entries_in(tmp_path / "journal")) < len(NAMES):  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_all_parts_are_written_at_the_end(tmp_path: Path) -> None:
    async with service_nursery() as services:
        it = Journal(tmp_path / "journal")
        services.start_soon(it.run)
        await trio.testing.wait_all_tasks_blocked()
        for name in NAMES:
            it.post(record(name))
    assert len(read_records(tmp_path / "journal")[0]) == len(NAMES)


async def test_a_new_file_that_is_not_safely_named_takes_no_more_entries(tmp_path: Path) -> None:
    """After a loss of power the old one could be back, without what was added since."""
    path, fails, really = tmp_path / "journal", True, durable.sync

    def synced(directory: Path) -> None:
        if fails:
            raise OSError(5, "Input/output error", str(directory))
        really(directory)

    with mock.patch.object(journal, "SPARE", 0):
        async with service_nursery() as services:
            it = Journal(path)
            services.start_soon(it.run)
            await it.put(record("a"))
            with (
                mock.patch.object(durable, "sync", synced),
                mock.patch.object(journal, "sync", synced),
            ):
                for time in (1.0, 2.0):  # the last of which is in both files
                    await it.put(record("a", time=time))
                for _ in range(2):
                    with pytest.raises(JournalFailed, match="Input/output error"):
                        await it.put(record("b"))
                assert list(entries_in(path)) == ["a"]
                fails = False
                await it.put(record("c"))
            assert list(entries_in(path)) == ["a", "c"]
