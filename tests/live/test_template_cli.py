"""`qmpkit template`, `clone` and `pool` on a real machine, without a daemon."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest

from qmpkit.testing import guests
from qmpkit.testing.guests.boot_sector import BANNER, boot_disk
from tests.live.commands import COMMAND
from tests.live.in_process import Command
from tests.sizes import LONG, OLDEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*OLDEST)]


@pytest.mark.bound(120)
def test_from_a_boot_to_a_pool(
    qemu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    guests.build_tiny()
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path))
    ran = Command(capsys)
    tiny = ["template", "make", "tiny", "web", "--set", f"qemu={qemu}", "--set", "accel=tcg"]
    ran.well(*tiny, "--run", "echo prepared >/tmp/it")
    assert ran(*tiny).status == 2  # its name is taken
    (listed,) = json.loads(ran.well("template", "list", "--json").out)
    assert (listed["name"], listed["twins_only"]) == ("web", False)
    assert "web" in ran.well("template", "list").out
    shown = json.loads(ran.well("template", "inspect", "web", "--json").out)
    assert shown["spec"]["memory"]["mem_path"] == "ram"
    assert "somebody each" in ran.well("template", "inspect", "web").out
    assert "every checksum is right" in ran.well("template", "verify", "web").err

    work = ["sh", "-c", 'cat /tmp/it; hostname; [ "$1" != bad ]', "sh"]
    monkeypatch.setattr("sys.stdin", io.StringIO("good\nbad\n"))
    done = ran("pool", "run", "web", "--lines", "--jobs=2", "--warm=1", "--json", "--", *work)
    assert done.status == 1 and "1 of 2 failed" in done.err
    runs = sorted(map(json.loads, done.out.splitlines()), key=lambda run: run["argv"][-1])
    assert [(run["argv"][-1], run["status"]) for run in runs] == [("bad", 1), ("good", 0)]
    assert [run["stdout"].split() for run in runs] == [["prepared", it["machine"]] for it in runs]

    told = ran("pool", "run", "web", "--json", "--warm=1", "--", "nonesuch")
    assert told.status == 1
    assert "nonesuch" in json.loads(told.out)["error"]

    clone = [*COMMAND, "clone", "web", "--name", "one", "--headless", "--twin"]
    with subprocess.Popen(clone, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert any("its monitor for other programs" in line for line in running.stderr)
        busy = ran("template", "rm", "web")
        assert busy.status == 2 and "clones of it run" in busy.err
        running.terminate()
        assert "one: it was stopped on request" in running.stderr.read()
    assert running.returncode == 0
    (tmp_path / ".templates" / "web" / "manifest.json").write_text("{")
    assert "removed all the same" in ran.well("template", "rm", "web").err
    assert list((tmp_path / ".templates").iterdir()) == []


@pytest.mark.skipif(not LONG, reason="a dozen commands: with --long")
def test_of_an_image_that_stays_as_it_was(
    qemu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    image = tmp_path / "old.raw"
    image.write_bytes(boot_disk())
    ran = Command(capsys)
    words = ["template", "make", "old.raw", "./web", "--set", f"qemu={qemu}", "--set=accel=tcg"]
    made = ran.well(*words, "--set=agent=false", "--wait", BANNER, "--twins")
    assert "the image stays as it is, and its changes go into the template" in made.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.raw", "web"]
    assert image.read_bytes() == boot_disk()
    ran.well("template", "verify", "./web")
    clone = [*COMMAND, "clone", "./web", "--headless", "--twin"]
    with subprocess.Popen(clone, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert any("its monitor for other programs" in line for line in running.stderr)
        running.terminate()
        running.stderr.read()
    assert running.returncode == 0


def test_what_was_changed_is_told_by_its_status(
    qemu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    guests.build_kvm_tiny()
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path))
    ran = Command(capsys)
    words = ["template", "make", "kvm-tiny", "web", "--set", f"qemu={qemu}", "--set=accel=tcg"]
    ran.well(*words, "--wait", "...", "--twins")
    folder = tmp_path / ".templates" / "web"
    sound = json.loads(ran.well("template", "verify", "web", "--json").out)
    assert sound == {"name": "web", "path": str(folder), "flaws": []}
    assert json.loads(ran.well("template", "list", "--json").out)[0]["flaws"] == []
    (folder / "state").chmod(0o600)
    with (folder / "state").open("ab") as state:
        state.write(b"x")
    told = ran("template", "verify", "web")
    assert told.status == 1
    assert "state: it has" in told.out
    assert ran("clone", "web", "--twin").status == 1
    (folder / "ram").unlink()
    told = ran("template", "verify", "web", "--json")
    assert told.status == 1
    flaws = json.loads(told.out)["flaws"]
    assert "ram: it is missing" in flaws and len(flaws) == 2
    listed = ran.well("template", "list").out
    assert "twins only; " in listed and "ram: it is missing" in listed
    assert json.loads(ran.well("template", "list", "--json").out)[0]["flaws"] == flaws
