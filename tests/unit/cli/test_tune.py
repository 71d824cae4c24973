"""What `qmpkit tune`, `top` and `host` make of words and answers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import main
from qmpkit.cli.exits import Refusal
from qmpkit.cli.top_rates import rates
from qmpkit.cli.tune import changes_of
from tests.unit.cli.daemons import scripted


def stats(name: str, time: float, spent: float, **more: Any) -> dict[str, Any]:
    thread = {"user": spent, "system": 0.5 * spent, "waited": 0.1 * spent}
    idle = {"user": 0.0, "system": 0.0, "waited": 0.0}
    return {
        "machine": name,
        "state": "running",
        "cpus": 1,
        "time": time,
        "vcpus": {"0": thread},
        "iothreads": {},
        "emulator": idle,
        "memory": {"rss": 1 << 20, "huge": 1 << 20, "balloon": None},
        "disks": {"disk0": {"read": spent * 1000, "written": 0}},
        "nics": {},
        **more,
    }


def test_rates_are_differences_over_time() -> None:
    (found,) = rates([stats("a", 12.0, 4.0)], [stats("a", 10.0, 2.0)])
    assert found["cpu"] == 1.5
    assert found["waited"] == pytest.approx(0.1)
    assert found["vcpus"] == {"0": 1.5}
    assert (found["read"], found["written"], found["received"]) == (1000.0, 0.0, None)
    assert found["memory"] == 2 << 20


def test_what_is_new_or_started_anew_has_no_rates_yet() -> None:
    fresh, restarted = rates(
        [stats("new", 12.0, 1.0), stats("a", 12.0, 0.1)], [stats("a", 10.0, 2.0)]
    )
    assert fresh["cpu"] is None
    assert restarted["cpu"] is None
    failed = {"machine": "b", "error": "no answer within 2 s", "state": "silent", "cpus": 1}
    assert rates([failed], [])[0]["error"] == "no answer within 2 s"
    assert rates([stats("b", 1.0, 1.0)], [failed])[0]["cpu"] is None


def test_words_of_a_change() -> None:
    assert changes_of(["pin=2", "cpu_max=1.5", "emulator=0", "nice=null"]) == {
        "pin": "2",
        "resources": {"cpu_max": 1.5, "emulator": "0", "nice": None},
    }
    assert changes_of(['pin=["2","3"]']) == {"pin": ["2", "3"]}
    assert changes_of(["pin=null"]) == {"pin": None}
    with pytest.raises(Refusal, match="'nice' is not FIELD=VALUE"):
        changes_of(["nice"])


def test_top_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([10.0, 12.0, 10.0, 12.0])

    def answers() -> Any:
        at = next(times)
        silent = {"machine": "web2", "error": "no answer", "state": "silent", "cpus": 1}
        return {"machines": [stats("web1", at, at), silent]}

    rows = {"machines": [{"name": "web1"}, {"name": "web2"}, {"name": "down"}]}
    with scripted(root, {"GET /stats": answers, "GET /machines": rows}):
        assert main(["top", "--once", "--every", "0.1"]) == 0
        head, web1, web2 = capsys.readouterr().out.splitlines()
        assert head.split()[:3] == ["NAME", "STATE", "CPU"]
        assert web1.split()[:5] == ["web1", "running", "150", "%", "10"]
        assert web2.split() == ["web2", "silent", *"-------"]
        assert main(["top", "web1", "--once", "--every", "0.1", "--json"]) == 0
        (machine,) = json.loads(capsys.readouterr().out)["machines"]
        assert (machine["machine"], machine["cpu"]) == ("web1", 1.5)


def test_top_into_a_file_has_each_interval(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([10.0, 12.0, 14.0])
    waits = iter([None, None, KeyboardInterrupt])

    def wait(_: float) -> None:
        if interrupt := next(waits):
            raise interrupt

    monkeypatch.setattr(time, "sleep", wait)
    with scripted(root, {"GET /stats": lambda: {"machines": [stats("web1", next(times), 1.0)]}}):
        assert main(["top"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["NAME", "web1", "NAME", "web1"]


def test_top_of_what_is_not_there_or_not_up(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {
        "GET /stats": {"machines": [stats("web1", 10.0, 10.0)]},
        "GET /machines": {"machines": [{"name": "web1"}, {"name": "down"}]},
    }
    with scripted(root, answers):
        assert main(["top", "nix", "--every", "3600"]) == 2, "at once, before any interval"
        read = capsys.readouterr()
        assert "'nix' (there are: web1, down)" in read.err
        assert "measuring" not in read.out
        assert main(["top", "down", "--once", "--every", "0.1"]) == 0
        assert capsys.readouterr().err == "none of these is up\n"


@pytest.mark.parametrize("every", ["0", "nan", "inf", "1e10"])
def test_no_interval_of_top(every: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(root, {"GET /stats": {"machines": []}}):
        assert main(["top", "--once", "--every", every]) == 2
    assert "for --every. Must be" in capsys.readouterr().err


def test_host_shows_this_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host"]) == 0
    shown = capsys.readouterr().out
    assert "NODE  PROCESSORS" in shown and "KSM" in shown and "limits: " in shown
    assert main(["host", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["processors"] and told["nodes"][0]["memory"] > 0
