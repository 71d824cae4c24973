"""Machines saved, and checkpoints of several, at the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.live.in_process import Command
from tests.live.kept import Places
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

FARM = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
memory = "32MiB"
[machines.web]
count = 2
disks = [{{ file = "{{name}}.qcow2", format = "qcow2", make = "64MiB" }}]
"""


def test_saved_and_back_at_the_shell(
    tmp_path: Path,
    qemu: str,
    places: Places,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "farm.toml").write_text(FARM.format(qemu=qemu))
    monkeypatch.chdir(folder)
    run = Command(capfd)
    up = run.apart("up", "farm.toml")
    assert up.status == 0, up.err
    done = run.well("lab", "checkpoint", "calm", "--description", "before")
    assert "checkpoint calm of web1, web2" in done.out + done.err
    (point,) = json.loads(run.well("lab", "list", "--json").out)
    assert point["machines"] == ["web1", "web2"] and point["whole"]
    assert "before" in run.well("lab", "list").out
    assert "already" in run("lab", "checkpoint", "calm").err
    assert run("lab", "checkpoint", "calm").status == 2
    (saved,) = json.loads(run.well("save", "web1", "--ram", "packed", "--json").out)
    assert saved["name"] == "web1" and saved["ram"] == "packed" and saved["bytes"] > 0
    assert _states(run) == {"web1": "saved", "web2": "running"}
    assert run("save", "web1").status == 2
    said = _said(run, "save", "web*")
    assert "web2 is saved" in said and "web1" not in said
    assert "none of them is up" in _said(run, "save", "web*")
    assert run.well("wait", "web*", "--for", "stopped")
    run.well("start", "web1")
    assert _states(run) == {"web1": "running", "web2": "saved"}
    run.well("discard", "web2")
    assert run("discard", "web2").status == 2
    assert "back at the checkpoint calm" in _said(run, "lab", "rewind", "calm")
    assert _states(run) == {"web1": "running", "web2": "running"}
    assert run("lab", "rewind", "no").status == 2
    run.well("lab", "rm", "calm")
    assert json.loads(run.well("lab", "list", "--json").out) == []
    run.well("save", "web*")
    down = run.well("ps", "--json")
    assert {it["declared"] for it in json.loads(down.out)} == {"stopped"}
    run.well("down", "--grace", "0")
    assert not list(places.state.glob("lab/saved/*"))


def _said(run: Command, *words: str) -> str:
    done = run.well(*words)
    return done.out + done.err


def _states(run: Command) -> dict[str, str]:
    return {it["name"]: it["state"] for it in json.loads(run.well("ps", "--json").out)}
