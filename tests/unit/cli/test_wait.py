"""`qmpkit wait`, and what is shown while something takes long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import main
from qmpkit.cli.waiting import Waiting
from tests.unit.cli.daemons import Answers, events, job, scripted


def _machine(name: str, state: str = "running", pid: int | None = 1) -> dict[str, Any]:
    return {"name": name, "state": state, "health": None, "pid": pid, "cause": "a crash"}


def _answers(*looks: list[dict[str, Any]], happen: str = "") -> Answers:
    """What is seen at each look, the last one for ever; *happen*: what is told meanwhile."""
    seen: Iterator[list[dict[str, Any]]] = iter(looks)
    last = looks[-1]
    return {
        "GET /machines": lambda: {"machines": next(seen, last)},
        "GET /events": happen or events(*[("web1", "something")] * len(looks)),
    }


WEB, DB = _machine("web1"), _machine("db")


def test_until_it_is_declared_no_longer(root: Path) -> None:
    with scripted(root, _answers([WEB, DB], [WEB, DB], [DB])) as daemon:
        assert main(["wait", "web*", "--for", "gone"]) == 0
    assert [asked for asked, _ in daemon.asked].count("GET /machines") == 3


def test_a_name_that_could_be_a_pattern_is_that_machines_alone(root: Path) -> None:
    odd, other = _machine("web[1]"), _machine("web1")
    with scripted(root, _answers([odd, other], [odd, other], [other])):
        assert main(["wait", "web[1]", "--for", "gone", "--timeout", "30"]) == 0


def test_one_that_is_not_there_is_gone(root: Path) -> None:
    with scripted(root, _answers([DB])):
        assert main(["wait", "web1", "--for", "gone"]) == 0
        assert main(["wait", "web1", "--for", "running"]) == 2


def test_one_that_is_down_may_still_be_declared(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = _machine("web1", "gone", None)
    with scripted(root, _answers([down])):
        assert main(["wait", "web1", "--for", "stopped"]) == 0
        assert main(["wait", "web1", "--for", "gone"]) == 1
        assert (
            "the daemon of farm 'lab' has ended. Cure: `qmpkit serve --farm lab"
            in capsys.readouterr().err
        )
        assert main(["wait", "web1", "--for", "gone", "--timeout", "0"]) == 1
        assert "not gone after 0 s: web1" in capsys.readouterr().err


def test_one_that_will_not_run_by_itself(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(root, _answers([_machine("web1", "crash-loop", None)])):
        assert main(["wait", "web1"]) == 2
    assert "web1 will not be running by itself: crash-loop: a crash" in capsys.readouterr().err


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("qmpkit.cli.waiting.time.monotonic", lambda: self.now)


def test_what_takes_long_is_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Waiting("waiting for web1 to power down") as it:
        for second in range(60):
            clock.now = 100.0 + second
            it.tick()
    assert capsys.readouterr().err == (
        "waiting for web1 to power down, 5 s so far\nwaiting for web1 to power down, 35 s so far\n"
    )


def test_a_stop_says_what_it_waits_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)

    def stopping() -> str:
        clock.now += 7
        return f": still here\n\n{job()}"

    answers = {
        **_answers([WEB, DB]),
        "POST /machines/web1/stop": {"job": "1"},
        "POST /machines/db/stop": {"job": "1"},
        "GET /jobs/1/events": stopping,
    }
    with scripted(root, answers):
        assert main(["stop", "*"]) == 0
    said = capsys.readouterr().err
    assert "waiting for web1 to power down (1 more after it), 7 s so far\nweb1 is stopped" in said
    assert "db is stopped" in said


def test_a_limit_that_is_none_and_one_that_is_no_number(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(root, _answers([WEB])):
        assert main(["wait", "web1", "--timeout", "inf"]) == 0
        assert main(["wait", "web1", "--for", "paused", "--timeout", "nan"]) == 2
        assert "Must be >= 0" in capsys.readouterr().err


def test_one_without_checks_is_not_waited_for_to_be_healthy(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        **_answers([WEB | {"health": "healthy"}, DB]),
        "GET /machines/web1": {"checks": ["agent"]},
        "GET /machines/db": {"checks": []},
    }
    with scripted(root, answers):
        assert main(["wait", "web1", "--for", "healthy"]) == 0
        assert main(["wait", "*", "--for", "healthy"]) == 2
    assert "without checks, never healthy: db." in capsys.readouterr().err


def test_events_that_are_followed_end_with_the_daemon_alone_and_that_is_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    happened = ": listening\n\n"
    with scripted(root, {"GET /events": happened}):
        assert main(["events", "-f"]) == 1
        assert (
            "the daemon of farm 'lab' has ended. Cure: `qmpkit serve --farm lab"
            in capsys.readouterr().err
        )
        assert main(["events"]) == 0
