"""A farm that nobody supervises is looked at, and stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmpkit.errors import JournalNewer
from qmpkit.process.entries import add
from qmpkit.process.identity import Identity, Standing
from qmpkit.process.places import claimed_places
from qmpkit.process.roots import JOURNAL
from qmpkit.supervisor.onlooker import look_at
from qmpkit.supervisor.record import Record
from tests.unit.supervisor.test_journal import record

ourselves = Identity.of(os.getpid())
assert ourselves is not None
LIVING = record("living", phase="up", identity=ourselves)
REUSED = record("reused", phase="up", identity=Identity(ourselves.boot, ourselves.pid, 1))
OF_OLD = record("old", phase="up", identity=Identity("another boot", 1, 1))
STOPPED = record("stopped", phase="down", declared="stopped")


def _write(state: Path, *records: Record) -> Path:
    path = state / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    add(path, {it.name: it.to_json() for it in records})
    return path


def test_who_lives_and_how_the_others_ended(state: Path) -> None:
    _write(state, LIVING, REUSED, OF_OLD, STOPPED)
    seen = look_at("lab")
    assert seen is not None
    found = {it.record.name: it for it in seen.machines}
    assert found["living"].alive
    assert found["living"].end is None
    assert found["living"].home.stderr == state / "logs" / "living" / "stderr.log"
    standings = {name: it.standing for name, it in found.items() if not it.alive}
    assert standings == {
        "reused": Standing.REUSED,
        "old": Standing.REBOOTED,
        "stopped": Standing.GONE,
    }
    ends = {name: it.end.why for name, it in found.items() if it.end is not None}
    assert ends["old"] == "the host was rebooted"
    assert "another process's" in ends["reused"]
    assert min(it.since for it in seen.machines) >= 0


def test_nothing_is_changed_by_looking(state: Path) -> None:
    path = _write(state, LIVING)
    with path.open("a") as file:
        file.write("torn\t{\nliving\thalf of")
    before = path.read_bytes()
    seen = look_at("lab")
    assert seen is not None
    assert [(it.machine, it.path.name) for it in seen.lost] == [("torn", "journal")]
    assert path.read_bytes() == before
    assert [path.name for path in path.parent.iterdir()] == ["journal"]
    assert [path.name for path in state.iterdir()] == ["machines"]


def test_who_supervises(state: Path) -> None:
    assert look_at("lab") is None
    with claimed_places("lab"):
        seen = look_at("lab")
        assert seen is not None
        assert seen.holder == os.getpid()
    seen = look_at("lab")
    assert seen is not None
    assert seen.holder is None  # its number is still in the file


def test_what_a_later_qmpkit_wrote_is_not_guessed(state: Path) -> None:
    add(_write(state), {"a": '{"schema": 1000}'})
    with pytest.raises(JournalNewer):
        look_at("lab")
