"""The journal: old or new, never torn; nothing dropped without a word."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpkit._trio import service_nursery
from qmpkit.errors import JournalFailed, JournalNewer
from qmpkit.machine.ledger import Change
from qmpkit.machine.report import ExitCause
from qmpkit.process.identity import Identity
from qmpkit.spec.facts import Facts, Flash
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.restart import Restart
from qmpkit.spec.sites import Sites
from qmpkit.supervisor import journal
from qmpkit.supervisor.journal import Journal, commit, read_records
from qmpkit.supervisor.policy import Mishap
from qmpkit.supervisor.record import End, Malformed, Record
from tests.sizes import JOURNAL_KILLS
from tests.unit.supervisor.test_policy import histories


def record(name: str = "a", **fields: object) -> Record:
    spec = MachineSpec(name=name, memory="16MiB", uuid="12345678-0000-0000-0000-000000000000")
    made = Record(
        name=name,
        declared="running",
        spec=spec,
        asked="x",
        restart=Restart(),
        sockets="/run/a",
        time=0.0,
    )
    return attrs.evolve(made, **fields)  # type: ignore[arg-type]


ends = st.builds(
    End,
    cause=st.sampled_from([*ExitCause, *Mishap]),
    why=st.text(),
    uptime=st.floats(0, 1e9),
    time=st.floats(0, 1e12),
    boot=st.text(),
)
texts = st.lists(st.text()).map(tuple)
changes = st.builds(
    Change,
    what=st.text(),
    spec=st.just(MachineSpec(name="a", snapshot="b")),
    begun=st.just(MachineSpec(name="a")),
    sure=st.booleans(),
    job=st.text(),
    nodes=texts,
    files=texts,
    leaving=texts,
    obsolete=texts,
    frozen=st.booleans(),
)
sites = st.sampled_from(
    [
        Sites("0-1", None, (None, "bind"), ()),
        Sites(("0", ""), "2", ("1", "preferred"), (("0", "bind"), (None, "interleave"))),
    ]
)
records = st.builds(
    record,
    st.sampled_from(["a", "b", "m" * 64, "ü, 'x'"]),
    declared=st.sampled_from(["running", "paused", "stopped"]),
    restart=st.builds(Restart, policy=st.sampled_from(["never", "always"])),
    phase=st.sampled_from(["starting", "up", "ending", "down"]),
    identity=st.none() | st.builds(Identity, st.text(), st.integers(1), st.integers(0)),
    argv=st.lists(st.text()).map(tuple),
    facts=st.builds(
        Facts,
        cpu_flags=st.lists(st.text()).map(tuple),
        flash=st.none() | st.builds(Flash, code=st.text(), template=st.text()),
    ),
    sites=st.none() | sites,
    end=st.none() | ends,
    history=histories,
    change=st.none() | changes,
)


@given(records)
def test_a_record_reads_back_as_it_was(it: Record) -> None:
    assert Record.from_json(it.to_json()) == it


@given(records, st.data())
def test_a_torn_text_is_malformed_and_nothing_else(it: Record, data: st.DataObject) -> None:
    text = it.to_json().encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(Malformed):
        Record.from_json(text[:cut])


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema": 1}', "[" * 100_000])
def test_no_record(text: str) -> None:
    with pytest.raises(Malformed):
        Record.from_json(text)


# Crash points: `commit` may stop after each of its system calls.


class Killed(BaseException):
    """The process ends here."""


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.sampled_from(["old", "new", None]), min_size=2, max_size=4),
    after=st.integers(0, 14),
)
def test_a_writer_that_stops_anywhere_leaves_old_or_new(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], after: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    before = {f"m{n}": record(f"m{n}", sockets="before").to_json() for n in range(len(texts))}
    commit(folder, before)
    batch = {
        f"m{n}": None if text is None else record(f"m{n}", sockets=text).to_json()
        for n, text in enumerate(texts)
    }
    with _Killer(after):
        commit(folder, batch)
    found, lost = read_records(folder)
    assert lost == []
    sockets = {it.name: it.sockets for it in found}
    for n, text in enumerate(texts):
        assert sockets.get(f"m{n}") in ("before", text)
    assert not [*folder.glob("*.draft")]


class _Killer:
    """Ends the block at its n-th system call that changes a disk."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def __enter__(self) -> None:
        self._patches = [
            mock.patch.object(os, "open", self._counted(os.open)),
            mock.patch.object(os, "fsync", self._counted(os.fsync)),
            mock.patch.object(Path, "replace", self._counted(Path.replace)),
            mock.patch.object(Path, "unlink", self._counted(Path.unlink)),
        ]
        for patch in self._patches:
            patch.start()

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        for patch in self._patches:
            patch.stop()
        return kind is Killed

    def _counted(self, call: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            if self._left == 0:
                raise Killed
            self._left -= 1
            return call(*args, **kwargs)

        return step


PROGRAM = """
import sys, json
from pathlib import Path
from qmpkit.supervisor.journal import commit
folder, text = Path(sys.argv[1]), sys.stdin.read()
print("go", flush=True)
number = 0
while True:
    number += 1
    commit(folder, {"a": text.replace("/run/a", f"{number}" * 2000 + ":")})
"""


def test_a_writer_that_is_killed_leaves_old_or_new(tmp_path: Path) -> None:
    dice = random.Random(1)
    for _ in range(JOURNAL_KILLS):
        argv = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write(record().to_json())
            writer.stdin.close()
            writer.stdout.readline()
            time.sleep(0.01 + dice.random() * 0.05)
            writer.kill()
        found, lost = read_records(tmp_path)
        assert lost == []
        for it in found:
            assert it.sockets.endswith(":")


def test_a_corrupt_file_is_set_aside_and_told_of(tmp_path: Path) -> None:
    commit(tmp_path, {"a": record("a").to_json(), "b": record("b").to_json()})
    for number in (1, 2):
        (tmp_path / "a.json").write_bytes(b"\xff\x00")
        found, (lost,) = read_records(tmp_path)
        assert [it.name for it in found] == ["b"]
        assert (lost.machine, lost.path.name) == ("a", f"a.json.corrupt-{number}")
        assert lost.path.read_bytes() == b"\xff\x00"


def test_a_record_under_another_name_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(record("a").to_json())
    _, (lost,) = read_records(tmp_path)
    assert "it is the record of 'a'" in lost.why


def test_a_newer_schema_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("torn")
    (tmp_path / "b.json").write_text('{"schema": 2, "who": "knows"}')
    with pytest.raises(JournalNewer, match=r"b\.json was written by a newer qmpkit \(schema 2\)"):
        read_records(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.json"}


async def test_many_writers_share_a_commit(tmp_path: Path) -> None:
    batches: list[int] = []

    def slow(directory: Path, batch: dict[str, str | None]) -> dict[str, OSError]:
        batches.append(len(batch))
        time.sleep(0.02)
        return commit(directory, batch)

    with mock.patch.object(journal, "commit", slow):
        async with service_nursery() as services:
            it = Journal(tmp_path)
            services.start_soon(it.run)
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(it.put, record(f"m{number}"))
            await it.remove("m7")
    assert len(batches) <= 4
    assert len(read_records(tmp_path)[0]) == 49


async def test_the_last_of_several_counts_and_all_are_told(tmp_path: Path) -> None:
    async with service_nursery() as services:
        it = Journal(tmp_path)
        tickets = [it.post(record(sockets=f"/{number}")) for number in range(3)]
        services.start_soon(it.run)
        for ticket in tickets:
            await ticket.durable()
    assert [found.sockets for found in read_records(tmp_path)[0]] == ["/2"]


async def test_what_is_queued_at_the_end_is_written(tmp_path: Path) -> None:
    async with service_nursery() as services:
        it = Journal(tmp_path)
        services.start_soon(it.run)
        await trio.testing.wait_all_tasks_blocked()
        it.post(record())
    assert len(read_records(tmp_path)[0]) == 1


async def test_a_failure_is_told_to_whom_it_concerns(tmp_path: Path) -> None:
    (tmp_path / "a.json.draft").mkdir()
    async with service_nursery() as services:
        it = Journal(tmp_path)
        services.start_soon(it.run)
        bad, good = it.post(record("a")), it.post(record("b"))
        await good.durable()
        with pytest.raises(JournalFailed, match=r"cannot write .*a\.json safely: Is a directory"):
            await bad.durable()


async def test_what_nobody_waits_for_is_written_soon_and_at_the_end(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        journal = Journal(tmp_path)
        nursery.start_soon(journal.run)
        journal.jot(record("a"))
        with trio.fail_after(5):
            while not (tmp_path / "a.json").exists():  # noqa: ASYNC110
                await trio.sleep(0.01)
        journal.jot(record("b"))
        await journal.put(record("c"))
        assert (tmp_path / "b.json").exists(), "it goes with the next one"
        journal.jot(record("d"))
        nursery.cancel_scope.cancel()
    assert (tmp_path / "d.json").exists()
