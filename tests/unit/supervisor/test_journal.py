"""The journal: old or new, never torn; nothing dropped without a word."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
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
from qmpkit.process.entries import add, compact, entries_in
from qmpkit.process.identity import Identity
from qmpkit.spec.facts import Facts, Flash
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.restart import Restart
from qmpkit.spec.sites import Sites
from qmpkit.supervisor import journal
from qmpkit.supervisor.journal import Journal, read_records
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


# Crash points: a writer may stop after each of its system calls.


class Killed(BaseException):
    """The process ends here."""


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.sampled_from(["old", "new", None]), min_size=2, max_size=4),
    after=st.integers(0, 5),
    cut=st.floats(0, 1),
    compacting=st.booleans(),
)
def test_a_writer_that_stops_anywhere_leaves_old_or_new(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    after: int,
    cut: float,
    compacting: bool,
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    add(path, {f"m{n}": record(f"m{n}", sockets="before").to_json() for n in range(len(texts))})
    batch = {
        f"m{n}": None if text is None else record(f"m{n}", sockets=text).to_json()
        for n, text in enumerate(texts)
    }
    with _Killer(after, cut):
        add(path, batch)
        if compacting:
            compact(path)
    found, lost = read_records(path)
    assert lost == []
    sockets = {it.name: it.sockets for it in found}
    for n, text in enumerate(texts):
        assert sockets.get(f"m{n}") in ("before", text)
    assert [it.name for it in path.parent.iterdir()] == ["journal"]
    add(path, {"next": record("next").to_json()})
    assert read_records(path) == ([*found, record("next")], [])


class _Killer:
    """Ends the block at its n-th system call that changes a disk, of a write in its middle."""

    def __init__(self, steps: int, cut: float) -> None:
        self._left = steps
        self._cut = cut

    def __enter__(self) -> None:
        self._patches = [
            mock.patch.object(os, "open", self._counted(os.open)),
            mock.patch.object(os, "write", self._counted(os.write)),
            mock.patch.object(os, "fsync", self._counted(os.fsync)),
            mock.patch.object(os, "fdatasync", self._counted(os.fdatasync)),
            mock.patch.object(Path, "replace", self._counted(Path.replace)),
        ]
        for patch in self._patches:
            patch.start()

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        for patch in self._patches:
            patch.stop()
        return kind is Killed

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                if isinstance(args[-1], bytes):
                    call(args[0], args[-1][: int(len(args[-1]) * self._cut)])
                raise Killed
            self._left -= 1
            return call(*args, **kwargs)

        return step


PROGRAM = """
import sys, json
from pathlib import Path
from qmpkit.process.entries import add, compact
path, text = Path(sys.argv[1]), sys.stdin.read()
print("go", flush=True)
number = 0
while True:
    number += 1
    add(path, {"a": text.replace("/run/a", f"{number}" * 2000 + ":")})
    if number % 3 == 0:
        compact(path)
"""


def test_a_writer_that_is_killed_leaves_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    dice = random.Random(1)
    for _ in range(JOURNAL_KILLS):
        argv = [sys.executable, "-c", PROGRAM, str(path)]
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
        found, lost = read_records(path)
        assert lost == []
        for it in found:
            assert it.sockets.endswith(":")


def test_what_could_not_be_added_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    add(path, {"a": record("a").to_json()})
    before = path.read_bytes()
    for call in ("write", "fdatasync"):
        done = getattr(os, call)

        def full(fd: int, *data: bytes, done: Callable[..., object] = done) -> None:
            done(fd, *(it[:100] for it in data))
            raise OSError(28, "No space left on device")

        with mock.patch.object(os, call, full), pytest.raises(OSError, match="No space"):
            add(path, {"a": None, "b": record("b").to_json()})
        assert path.read_bytes() == before


def test_a_corrupt_entry_is_set_aside_and_told_of(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    add(path, {"a": record("a").to_json(), "b": record("b").to_json()})
    for number in (1, 2):
        with path.open("ab") as file:
            file.write(b"a\t\xff\x00\n")
        found, (lost,) = read_records(path)
        assert [it.name for it in found] == ["b"]
        assert (lost.machine, lost.path.name) == ("a", f"a.corrupt-{number}")
        assert lost.path.read_bytes() == b"\xff\x00"
        assert read_records(path)[1] == []


def test_one_without_a_name_is_told_of_too(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"what\n../../x\twho\n")
    _, lost = read_records(path)
    assert {it.machine: it.path.name for it in lost} == {
        "?": "?.corrupt-1",
        "../../x": "unknown.corrupt-1",
    }
    assert read_records(path) == ([], [])


def test_a_record_under_another_name_is_no_record(tmp_path: Path) -> None:
    add(tmp_path / "journal", {"b": record("a").to_json()})
    _, (lost,) = read_records(tmp_path / "journal")
    assert "it is the record of 'a'" in lost.why


def test_a_newer_schema_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    add(path, {"a": "torn", "b": '{"schema": 2, "who": "knows"}'})
    with path.open("a") as file:
        file.write("c\thalf of")
    before = path.read_bytes()
    with pytest.raises(JournalNewer, match=r"journal was written by a newer qmpkit \(schema 2\)"):
        read_records(path)
    assert path.read_bytes() == before
    assert [it.name for it in tmp_path.iterdir()] == ["journal"]


async def test_many_writers_share_a_commit(tmp_path: Path) -> None:
    batches: list[int] = []

    def slow(path: Path, batch: dict[str, str | None]) -> int:
        batches.append(len(batch))
        time.sleep(0.02)
        return add(path, batch)

    with mock.patch.object(journal, "add", slow):
        async with service_nursery() as services:
            it = Journal(tmp_path / "journal")
            services.start_soon(it.run)
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(it.put, record(f"m{number}"))
            await it.remove("m7")
    assert len(batches) <= 4
    assert len(read_records(tmp_path / "journal")[0]) == 49


async def test_the_last_of_several_counts_and_all_are_told(tmp_path: Path) -> None:
    async with service_nursery() as services:
        it = Journal(tmp_path / "journal")
        tickets = [it.post(record(sockets=f"/{number}")) for number in range(3)]
        services.start_soon(it.run)
        for ticket in tickets:
            await ticket.durable()
    assert [found.sockets for found in read_records(tmp_path / "journal")[0]] == ["/2"]


async def test_what_is_queued_at_the_end_is_written(tmp_path: Path) -> None:
    async with service_nursery() as services:
        it = Journal(tmp_path / "journal")
        services.start_soon(it.run)
        await trio.testing.wait_all_tasks_blocked()
        it.post(record())
    assert len(read_records(tmp_path / "journal")[0]) == 1


async def test_one_that_nothing_comes_into_makes_no_file(tmp_path: Path) -> None:
    for _ in range(20):  # in which order its tasks see the end is left to chance
        async with service_nursery() as services:
            services.start_soon(Journal(tmp_path / "journal").run)
            await trio.testing.wait_all_tasks_blocked()
    assert not [*tmp_path.iterdir()]  # noqa: ASYNC240


async def test_a_failure_is_told_to_whom_it_concerns(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    async with service_nursery() as services:
        it = Journal(tmp_path / "journal")
        services.start_soon(it.run)
        bad = it.post(record("a"))
        with pytest.raises(JournalFailed, match=r"cannot write .*journal safely: Is a directory"):
            await bad.durable()
        (tmp_path / "journal").rmdir()
        await it.post(record("b")).durable()
    assert [it.name for it in read_records(tmp_path / "journal")[0]] == ["b"]


async def test_what_counts_no_longer_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SPARE", 5000)
    path = tmp_path / "journal"
    async with service_nursery() as services:
        it = Journal(path)
        services.start_soon(it.run)
        for number in range(50):
            await it.put(record("a", sockets=f"/{number}"))
            await it.put(record(f"m{number % 3}"))
            await it.remove("m0")
        largest = path.stat().st_size
    assert largest < 5000 + 4 * sum(map(len, entries_in(path).values()))
    found, _ = read_records(path)
    assert {it.name: it.sockets for it in found} == {"a": "/49", "m1": "/run/a", "m2": "/run/a"}


async def test_what_nobody_waits_for_is_written_soon_and_at_the_end(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        path = tmp_path / "journal"
        journal = Journal(path)
        nursery.start_soon(journal.run)
        journal.jot(record("a"))
        with trio.fail_after(5):
            while "a" not in entries_in(path):  # noqa: ASYNC110
                await trio.sleep(0.01)
        journal.jot(record("b"))
        await journal.put(record("c"))
        assert "b" in entries_in(path), "it goes with the next one"
        journal.jot(record("d"))
        nursery.cancel_scope.cancel()
    assert "d" in entries_in(path)
