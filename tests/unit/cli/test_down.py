"""`qmpkit down --delete-disks` and `rm`: nothing is lost without a word for it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import main
from tests.unit.cli.daemons import Scripted, job, scripted


def _lost(*disks: str, memory: bool = False) -> dict[str, object]:
    return {"disks": disks, "memory": memory}


ANSWERS = {
    "GET /machines": {"machines": [{"name": "web1"}, {"name": "web2"}, {"name": "db"}]},
    "POST /losses": {"machines": {"web1": _lost("/disks/web1.qcow2"), "web2": _lost()}},
    "POST /down": {"job": "1"},
    "GET /jobs/1/events": job(went_well=True, machines=[]),
}
DELETE = ["down", "web*", "--delete-disks"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _typed(monkeypatch: pytest.MonkeyPatch, text: str) -> Terminal:
    """What the person types, and where they read."""
    shown = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(text))
    monkeypatch.setattr("sys.stderr", shown)
    return shown


def _downs(daemon: Scripted) -> list[Any]:
    return [body for asked, body in daemon.asked if asked == "POST /down"]


def test_a_person_reads_what_is_lost_and_says_yes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _typed(monkeypatch, "y\n")
    with scripted(root, ANSWERS) as daemon:
        assert main(DELETE) == 0
    assert "  web1: /disks/web1.qcow2\n" in shown.getvalue()
    question = "stop and forget 2 machines of farm 'lab' and delete 1 disk for good? [y/N]"
    assert question in shown.getvalue()
    assert _downs(daemon) == [{"delete_disks": True, "names": ["web1", "web2"]}]


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yess\n"])
def test_anything_else_is_a_no(root: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    shown = _typed(monkeypatch, answer)
    with scripted(root, ANSWERS) as daemon:
        assert main(DELETE) == 1
    assert "nothing was changed" in shown.getvalue()
    assert _downs(daemon) == []


def test_where_nobody_can_be_asked(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with scripted(root, ANSWERS) as daemon:
        assert main(DELETE) == 2
        assert "confirmed: web1: /disks/web1.qcow2. Cure: --yes" in capsys.readouterr().err
        assert _downs(daemon) == []
        assert main([*DELETE, "--yes"]) == 0
    assert _downs(daemon) == [{"delete_disks": True, "names": ["web1", "web2"]}]


def test_what_is_of_no_file_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = job(went_well=True, machines=[], others=["guest"])
    with scripted(root, {**ANSWERS, "GET /jobs/1/events": left}):
        assert main(["down"]) == 0
    assert "guest stays: it is of no farm file (`qmpkit stop`" in capsys.readouterr().err


SAVED = {"POST /losses": {"machines": {"web1": _lost(memory=True), "web2": _lost()}}}


def test_what_saved_machines_would_go_on_from_is_asked_about_too(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = _typed(monkeypatch, "n\ny\n")
    with scripted(root, {**ANSWERS, **SAVED}) as daemon:
        assert main(["down"]) == 1
        assert "  web1: the memory that it was saved with\n" in shown.getvalue()
        question = "stop and forget 2 machines of farm 'lab' and discard the saved memory of 1"
        assert question in shown.getvalue()
        assert _downs(daemon) == []
        assert main(["down"]) == 0
        assert _downs(daemon) == [{"delete_disks": False, "names": ["web1", "web2"]}]
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        assert main(["down"]) == 2
        assert "it was saved with. Cure: --yes" in shown.getvalue()
        assert main(["down", "--yes"]) == 0
    assert _downs(daemon)[1:] == [{"delete_disks": False}]


def test_both_are_one_question(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _typed(monkeypatch, "n\n")
    both = {"POST /losses": {"machines": {"web1": _lost("/disks/web1.qcow2", memory=True)}}}
    with scripted(root, {**ANSWERS, **both}):
        assert main(DELETE) == 1
    lines = "  web1: /disks/web1.qcow2\n  web1: the memory that it was saved with\n"
    assert lines in shown.getvalue()
    both_lost = "delete 1 disk for good and discard the saved memory of 1 machine? [y/N]"
    assert both_lost in shown.getvalue()


def test_disks_that_stay_need_no_question(root: Path) -> None:
    with scripted(root, ANSWERS) as daemon:
        assert main(["down"]) == 0
    assert _downs(daemon) == [{"delete_disks": False}]


def test_what_comes_to_an_empty_farm_meanwhile_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _typed(monkeypatch, "y\n")
    with scripted(root, {**ANSWERS, "POST /losses": {"machines": {}}}) as daemon:
        assert main(["down", "--delete-disks"]) == 0
    assert _downs(daemon) == [{"delete_disks": True, "names": []}]


RM = {
    "GET /machines": {"machines": [{"name": "web1"}, {"name": "web2"}]},
    "GET /machines/web1/losses": {"memory": False},
    "GET /machines/web2/losses": {"memory": True},
    "DELETE /machines/web1": {"job": "1"},
    "DELETE /machines/web2": {"job": "2"},
    "GET /jobs/1/events": job(name="web1", discarded=False),
    "GET /jobs/2/events": job(name="web2", discarded=True),
}


def _removed(daemon: Scripted) -> list[str]:
    return [asked for asked, _ in daemon.asked if asked.startswith("DELETE ")]


def test_rm_of_a_saved_machine_asks_before_its_memory_goes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _typed(monkeypatch, "n\ny\n")
    with scripted(root, RM) as daemon:
        assert main(["rm", "*"]) == 1
        assert "  web2: the memory that it was saved with\n" in shown.getvalue()
        assert "web1: the memory" not in shown.getvalue()
        question = "forget 2 machines of farm 'lab' and discard the saved memory of 1 machine?"
        assert question in shown.getvalue()
        assert "nothing was changed" in shown.getvalue()
        assert _removed(daemon) == []
        assert main(["rm", "*"]) == 0
    assert _removed(daemon) == ["DELETE /machines/web1", "DELETE /machines/web2"]


def test_rm_of_a_saved_machine_where_nobody_can_be_asked(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with scripted(root, RM) as daemon:
        assert main(["rm", "*"]) == 2
        assert "web2: the memory that it was saved with. Cure: --yes" in capsys.readouterr().err
        assert _removed(daemon) == []
        assert main(["rm", "web1"]) == 0
        assert main(["rm", "*", "--yes"]) == 0
    assert _removed(daemon) == [f"DELETE /machines/web{n}" for n in (1, 1, 2)]
