"""What `qmpkit device` asks of a farm's daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpkit.cli import main
from qmpkit.server.answers import Refused
from qmpkit.server.device_api import _refuse_relative
from qmpkit.spec.block import Disk
from qmpkit.spec.encryption import BaseKey, Luks
from tests.unit.cli.daemons import scripted


@pytest.mark.parametrize("long", [False, True])
def test_every_path_counts_from_here(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    bases = [{"file": "b.qcow2", "key_file": "b.key"}]
    luks = json.dumps({"key_file": "a.key", "bases": bases}) if long else "a.key"
    answers = {
        "GET /machines": {"machines": [{"name": "web"}]},
        "POST /machines/web/devices": {"id": "disk0"},
    }
    words = ["file=a.qcow2", "format=qcow2", 'make={"file":"b.qcow2","format":"qcow2"}']
    with scripted(root, answers) as daemon:
        assert main(["device", "add", "web", "disk", *words, f"luks={luks}"]) == 0
    body = daemon.asked[-1][1]
    here = {name: str(tmp_path / name) for name in ("a.qcow2", "b.qcow2", "a.key", "b.key")}
    assert (body["file"], body["make"]["file"]) == (here["a.qcow2"], here["b.qcow2"])
    bases = [{"file": here["b.qcow2"], "key_file": here["b.key"]}]
    wanted = {"key_file": here["a.key"], "bases": bases} if long else here["a.key"]
    assert body["luks"] == wanted


def test_the_daemon_takes_no_secret_from_its_own_folder() -> None:
    for luks in (Luks("a.key"), Luks("/a.key", bases=[BaseKey("/b.qcow2", "b.key")])):
        with pytest.raises(Refused, match=r"key_file must be an absolute path, not '[ab]\.key'"):
            _refuse_relative(Disk("/a.qcow2", format="qcow2", luks=luks))


def test_forwards_are_listed_as_they_are_written(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forwards = [{"host": 0, "guest": 22}, {"host": 8080, "guest": 80}]
    nic = {"id": "nic0", "kind": "user", "forwards": forwards, "link": False}
    answers = {
        "GET /machines": {"machines": [{"name": "web"}]},
        "GET /machines/web/devices": {"devices": [nic], "ports": {"used": {}, "empty": []}},
    }
    with scripted(root, answers):
        assert main(["device", "list", "web"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split(maxsplit=3)[3].rstrip() == "forwards=0:22,8080:80 (cable out)"
