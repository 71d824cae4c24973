"""A farm from its file, at the shell: up, watched, used, changed, its daemon killed, down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.kept import Places
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

FARM = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
restart = "on-failure"
[networks.out]
kind = "nat"
[machines.web]
profile = "tiny-microvm"
count = {count}
networks = ["out"]
ports = ["0:{port}"]
requires = ["db"]
[machines.db]
profile = "tiny-microvm"
description = "{description}"
health = ["agent"]
[machines.idle]
memory = "16MiB"
after = ["db"]
"""


class Shell:
    """Runs the command in a directory that has a farm.toml."""

    def __init__(self, folder: Path, qemu: str) -> None:
        self.folder = folder
        self.qemu = qemu

    def write(self, **values: object) -> None:
        given = {"count": 2, "port": 80, "description": "", "qemu": self.qemu, **values}
        (self.folder / "farm.toml").write_text(FARM.format(**given))

    def run(self, *words: str, status: int = 0, stdin: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "qmpkit.cli", *words],
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr if status else done.stdout

    def type(self, machine: str, line: str, *, until: str) -> str:
        """What a console says to a line."""
        words = [sys.executable, "-m", "qmpkit.cli", "console", machine]
        with subprocess.Popen(
            words, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            os.write(process.stdin.fileno(), f"{line}\n".encode())
            said = ""
            while until not in said and (part := os.read(process.stdout.fileno(), 65536)):
                said += part.decode(errors="replace")
            os.write(process.stdin.fileno(), b"\x1d")
        assert process.returncode == 0
        return said

    def states(self) -> dict[str, str]:
        return {it["name"]: it["state"] for it in json.loads(self.run("ps", "--json"))}


@pytest.fixture
def shell(tmp_path: Path, qemu: str, places: Places) -> Shell:
    folder = tmp_path / "lab"
    folder.mkdir()
    return Shell(folder, qemu)


def _daemon(places: Places) -> int:
    return int((places.state / "lab" / "lock").read_text())


def test_a_farm_from_up_to_down(shell: Shell, places: Places) -> None:
    shell.write()
    try:
        _up_and_used(shell)
        _changed(shell)
        _adopted(shell, places)
        down = json.loads(shell.run("down", "--grace", "1", "--json"))
        assert down["went_well"]
        assert shell.states() == {}
        assert (places.qemus(), places.records()) == ([], {})
    finally:
        os.kill(_daemon(places), signal.SIGTERM)


def _up_and_used(shell: Shell) -> None:
    assert "+ web2 is added" in shell.run("plan", "farm.toml")
    up = json.loads(shell.run("up", "farm.toml", "--json"))
    assert [it["did"] for it in up["machines"]] == ["added"] * 4
    assert shell.states() == dict.fromkeys(("idle", "db", "web1", "web2"), "running")
    assert "healthy" in shell.run("ps")
    assert shell.run("exec", "db", "--", "sh", "-c", "cat; exit 7", stdin="hello", status=7) == (
        "hello"
    )
    shell.run("cp", "farm.toml", "db:/tmp/")
    shell.run("cp", "db:/tmp/farm.toml", "back.toml")
    assert (shell.folder / "back.toml").read_text() == (shell.folder / "farm.toml").read_text()
    assert "tiny#" in shell.run("logs", "db")
    events = shell.run("events", "--machine", "db")
    assert "starting" in events
    assert "healthy" in events
    shell.run("pause", "web*")
    assert shell.states()["web2"] == "paused"
    shell.run("resume", "web*")
    shell.run("stop", "idle", "--grace", "0")
    shell.run("wait", "idle", "--for", "stopped")
    assert "it is stopped" not in shell.run("start", "idle")
    assert "there are: db, idle" in shell.run("stop", "nobody", status=2)


def _changed(shell: Shell) -> None:
    shell.write(port=81, description="another", count=1)
    plan = shell.run("plan", "farm.toml")
    assert "- web2" in plan
    assert "80 → 81" in plan
    up = json.loads(shell.run("up", "farm.toml", "--json"))
    assert {it["name"]: it["did"] for it in up["machines"]} == {
        "web2": "removed",
        "web1": "changed",
        "db": "changed",
        "idle": "unchanged",
    }
    (web,) = json.loads(shell.run("inspect", "web1"))
    assert [forward["guest_port"] for forward in web["forwards"]] == [81]
    shell.run("scale", "web=2")
    assert shell.states()["web2"] == "running"


def _adopted(shell: Shell, places: Places) -> None:
    before = {it["name"]: it["pid"] for it in json.loads(shell.run("ps", "--json"))}
    os.kill(_daemon(places), signal.SIGKILL)
    _without_daemon(shell, before)
    shell.run("serve", "--detach")
    assert shell.run("exec", "db", "--", "echo", "again") == "again\n"
    after = {it["name"]: it["pid"] for it in json.loads(shell.run("ps", "--json"))}
    assert after == before


def _without_daemon(shell: Shell, pids: dict[str, int]) -> None:
    """The machines are there, and their guests are reached by their own sockets."""
    seen = json.loads(shell.run("ps", "--json"))
    assert {it["name"]: it["pid"] for it in seen} == pids
    assert {(it["state"], it["declared"]) for it in seen} == {("alive", "running")}
    said = shell.run("exec", "db", "--", "sh", "-c", "cat; exit 3", stdin="direct", status=3)
    assert said == "direct"
    assert "by 42" in shell.type("db", "echo by $((40 + 2))", until="by 42")
    assert "there are: db, idle" in shell.run("console", "nobody", status=2)
    assert "no guest agent channel" in shell.run("exec", "idle", "--", "ls", status=2)
    assert "no daemon runs for farm 'lab'" in shell.run("inspect", "db", status=1)
