"""A farm without a daemon at the shell: listed by its records, and never written to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qmpkit.cli import main
from qmpkit.machine.report import ExitCause
from qmpkit.process.entries import add
from qmpkit.process.identity import Identity, boot_id
from qmpkit.process.places import claimed_places
from qmpkit.supervisor.policy import History
from qmpkit.supervisor.record import End, Record
from tests.unit.supervisor.test_journal import record

Farm = Callable[..., Path]
CRASH = End(ExitCause.CRASHED, "it crashed", 5.0, time.time() - 7200, boot_id())


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """Writes the records of the farm "lab"."""
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("QMPKIT_FARM", raising=False)

    def write(*records: Record) -> Path:
        folder = tmp_path / "state" / "lab" / "machines"
        folder.mkdir(parents=True, exist_ok=True)
        add(folder / "journal", {it.name: it.to_json() for it in records})
        return folder

    return write


def _living(name: str) -> Record:
    return record(name, phase="up", identity=Identity.of(os.getpid()))


def test_ps_lists_what_is_on_record(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    loops = History(crash_loop="5 crashes in 60 s")
    farm(_living("web1"), record("db", phase="down", end=CRASH, history=loops))
    assert main(["ps", "--json"]) == 0
    said = capsys.readouterr()
    db, web = json.loads(said.out)
    assert (db["name"], db["state"], db["pid"], db["cause"]) == (
        "db",
        "crash-loop",
        None,
        "it crashed",
    )
    assert (web["state"], web["pid"], web["declared"]) == ("alive", os.getpid(), "running")
    assert said.err.startswith("no daemon runs for farm 'lab'. Cure: `qmpkit serve --farm lab")
    assert main(["ps"]) == 0
    assert "2 h" in capsys.readouterr().out


def test_ps_tells_of_what_it_cannot_read(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    add(farm(_living("web1")) / "journal", {"db": "{"})
    assert main(["ps"]) == 0
    said = capsys.readouterr()
    assert "web1" in said.out
    assert "warning: machine 'db': its record" in said.err


def test_a_farm_that_another_program_keeps(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    farm(_living("web1"))
    with claimed_places("lab"):
        assert main(["ps"]) == 0
        assert f"process {os.getpid()} keeps farm 'lab'" in capsys.readouterr().err
        for words in (["exec", "web1", "--", "ls"], ["console", "web1"]):
            assert main(words) == 1
            assert "'web1' cannot be reached. Cure: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["exec", "db", "--", "ls"], ["console", "db"]])
def test_a_machine_that_is_not_up(
    farm: Farm, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    farm(_living("web1"), record("db", phase="down", end=CRASH))
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: machine 'db' is not up: it crashed. no daemon runs")
    assert main([words[0], "dbx", *words[2:]]) == 2
    assert "no machine of farm 'lab' is called 'dbx' (did you mean 'db'?)" in (
        capsys.readouterr().err
    )
    assert main([words[0], "*", *words[2:]]) == 2
    assert "'*' means several machines: db, web1" in capsys.readouterr().err


def test_nothing_on_record(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"]) == 1
    assert "no daemon runs for farm 'qmpkit'" in capsys.readouterr().err
