"""The commands about a farm, over a daemon that says what a test wants."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import main
from qmpkit.cli.exits import DaemonSaid
from qmpkit.cli.farm_jobs import result_of
from qmpkit.cli.serve import end_daemon
from qmpkit.cli.waiting import Waiting
from tests.unit.cli.daemons import job, scripted

FARM = """
schema = 1
[machines.web]
profile = "tiny"
count = 2
"""


def _row(name: str, **fields: Any) -> dict[str, Any]:
    plain = {"state": "running", "health": None, "declared": "running", "since": 75.0, "pid": 7}
    return {"name": name, **plain, "memory": 1 << 30, "cpus": 2, "cause": "RESUME", **fields}


def test_ps_is_a_line_for_each(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [_row("web1"), _row("db\x1b[2J", state="gone", pid=None, since=200_000.0, cause="")]
    with scripted(root, {"GET /machines": {"machines": rows}}):
        assert main(["ps"]) == 0
        head, web, db = capsys.readouterr().out.splitlines()
        assert head.split()[:4] == ["NAME", "STATE", "HEALTH", "DECLARED"]
        assert web.split() == [
            "web1",
            "running",
            "-",
            "running",
            "1",
            "min",
            "7",
            "1GiB",
            "2",
            "RESUME",
        ]
        assert db.split()[:6] == [r"db\x1b[2J", "gone", "-", "running", "2", "d"]
        assert main(["ps", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == rows


def test_a_plan_needs_no_daemon_when_there_is_nothing_yet(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "farm.toml"
    file.write_text(FARM)
    assert main(["plan", str(file)]) == 0
    assert capsys.readouterr().out == "+ web1 is added\n+ web2 is added\n"
    (root / "state" / "lab" / "machines").mkdir(parents=True)
    assert main(["plan", str(file)]) == 1  # there may be machines that only it knows
    assert "no daemon runs for farm 'lab'" in capsys.readouterr().err


def test_a_plan_says_what_changes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "farm.toml"
    file.write_text(FARM)
    change = {"field": "memory", "old": "1GiB", "new": "2GiB"}
    steps = [
        {"step": "RestartNeeded", "name": "web1", "changes": [change]},
        {"step": "Unchanged", "name": "web2", "running": False},
        {"step": "ChangeLive", "name": "web3", "running": False},
        {"step": "Remove", "name": "old"},
        {"step": "Remove", "name": "older", "running": False, "saved": True},
        {"step": "ChangeLive", "name": "web6", "running": False, "saved": True},
        {"step": "ChangeLive", "name": "web4", "flaws": [{"what": "the bridge: removed"}]},
        {"step": "RestartNeeded", "name": "web5", "flaws": [{"what": "the tap: removed"}]},
    ]
    with scripted(root, {"POST /plan": {"is_empty": False, "steps": steps}}) as daemon:
        assert main(["plan", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "! web1 needs --restart for its changes",
        "    memory: '1GiB' → '2GiB'",
        "  web2 is down and starts",
        "~ web3 is down, is changed and starts",
        "- old is stopped and forgotten; its disks stay",
        "- older is forgotten, and what it was saved with is discarded; its disks stay",
        "! web6 is saved, which fits no other spec: start it as it was, or `qmpkit discard` it",
        "~ web4 gets back what its networks lack",
        "    the bridge: removed",
        "! web5 needs --restart",
        "    the tap: removed",
    ]
    assert daemon.asked[0][1]["farm"]["machines"]["web"]["count"] == 2


def test_what_became_of_each(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machines = [
        {"name": "web3", "did": "added", "why": ""},
        {"name": "web4", "did": "failed", "why": "no memory"},
    ]
    ended = job(went_well=False, machines=machines)
    with scripted(root, {"POST /scale": {"job": "1"}, "GET /jobs/1/events": ended}) as daemon:
        assert main(["scale", "web=4"]) == 1
    assert capsys.readouterr().err == "web3 is up\nerror: web4 FAILED (no memory)\n"
    assert daemon.asked[0][1] == {"group": "web", "count": 4}
    for word in ("web", "web=", "=3", "web=-1", "web=²"):
        assert main(["scale", word]) == 2
        assert f"{word!r} is not TABLE=COUNT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"kinds": ["HostLacks"], "message": "no memory"}, "no memory"),
        (None, "stop web1 was cancelled"),
    ],
)
def test_a_job_that_does_not_end_well(error: dict[str, Any] | None, words: str) -> None:
    with pytest.raises(DaemonSaid, match=words):
        result_of({"state": "failed", "what": "stop web1", "result": None, "error": error})


@pytest.mark.parametrize(
    ("words", "asked", "said"),
    [
        (("stop", "web1"), "POST /machines/web1/stop", "what was declared until now stays so"),
        (
            ("disk", "move", "web1", "disk0", "new.qcow2"),
            "POST /machines/web1/disks/disk0/move",
            "what was begun is undone",
        ),
        (
            ("snapshot", "delete", "web1", "one"),
            "DELETE /machines/web1/snapshots/one",
            "what is merged already stays so; ask again for the rest",
        ),
    ],
)
def test_who_gives_a_job_up_is_told_what_comes_of_it(
    words: Sequence[str],
    asked: str,
    said: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(waiting: Waiting) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Waiting, "tick", interrupted)
    answers = {
        "GET /machines": {"machines": [_row("web1")]},
        asked: {"job": "1"},
        "GET /jobs/1/events": "event: beat\ndata: {}\n\n",
        "DELETE /jobs/1": {},
    }
    with scripted(root, answers) as daemon:
        assert main([*words]) == 130
    assert f"given up; {said}\n" in capsys.readouterr().err
    assert ("DELETE /jobs/1", None) in daemon.asked


def test_rm_tells_of_a_memory_that_goes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {
        "GET /machines": {"machines": [_row("web1"), _row("web2")]},
        "GET /machines/web1/losses": {"memory": False},
        "GET /machines/web2/losses": {"memory": False},
        "DELETE /machines/web1": {"job": "1"},
        "DELETE /machines/web2": {"job": "2"},
        "GET /jobs/1/events": job(name="web1", discarded=False),
        "GET /jobs/2/events": job(name="web2", discarded=True),
    }
    with scripted(root, answers):
        assert main(["rm", "web*"]) == 0
    assert capsys.readouterr().err == (
        "web1 is forgotten\nweb2 is forgotten, and what it was saved with is discarded\n"
    )


def test_each_machine_gets_its_word(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {
        "GET /machines": {"machines": [_row("web1"), _row("web2")]},
        "POST /machines/web1/stop": {"job": "1"},
        "POST /machines/web2/stop": {"job": "2"},
        "GET /jobs/1/events": job(),
        "GET /jobs/2/events": job()
        .replace('"done"', '"failed"')
        .replace('"error": null', '"error": {"kinds": ["HostLacks"], "message": "a full disk"}'),
    }
    with scripted(root, answers) as daemon:
        assert main(["stop", "*", "--grace", "3"]) == 3
    assert capsys.readouterr().err == "web1 is stopped\nerror: a full disk\n"
    assert ("POST /machines/web2/stop", {"grace": 3.0}) in daemon.asked


def test_events_as_they_are_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"sequence": 5, "time": 0.0, "machine": "web1", "state": "gone", "cause": "a\nb"}
    said = f"event: lost\ndata: {{}}\n\nevent: happening\ndata: {json.dumps(told)}\n\n"
    with scripted(root, {"GET /events": said}):
        assert main(["events"]) == 0
        read = capsys.readouterr()
        assert read.out.endswith(r"web1: gone (a\nb)" + "\n")
        assert "warning: some events are gone" in read.err
        assert main(["events", "--json", "--since", "1h"]) == 0
        assert json.loads(capsys.readouterr().out) == told
        assert main(["events", "--since", "noon"]) == 2


def test_events_of_no_machine_are_refused_but_those_of_one_that_is_gone_are_not(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, Any] = {"GET /machines": {"machines": [_row("web1")]}, "GET /events": ""}
    with scripted(root, answers):
        for follow in ([], ["-f"]):
            assert main(["events", "--machine", "nix", *follow]) == 2
            assert "'nix' (there are: web1)" in capsys.readouterr().err
        assert main(["events", "--machine", "web1"]) == 0, "nothing has happened to it yet"
        told = {"sequence": 5, "time": 0.0, "machine": "old", "state": "forgotten", "cause": ""}
        answers["GET /events"] = f"event: happening\ndata: {json.dumps(told)}\n\n"
        assert main(["events", "--machine", "old"]) == 0
        assert capsys.readouterr().out.endswith("old: forgotten\n")


def test_a_daemon_is_ended_and_waited_for(root: Path) -> None:
    end_daemon("lab")  # there is none
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None

        def end() -> dict[str, str]:
            assert process.stdin is not None
            process.stdin.close()
            return {}

        with scripted(root, {"GET ": {"pid": process.pid}, "POST /shutdown": end}):
            end_daemon("lab")
        assert process.wait(10) != 0  # EOFError
