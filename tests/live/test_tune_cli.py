"""`qmpkit tune` and `qmpkit top` on a farm's machines, `qmpkit host` beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.live.in_process import Command
from tests.live.kept import Places
from tests.live.test_disk_cli import Shell
from tests.sizes import LONG, NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(*NEWEST),
    pytest.mark.skipif(not LONG, reason="a dozen commands: scripts/test --long"),
]

LAST = str(max(os.sched_getaffinity(0)))
FARM = """
schema = 1
[defaults]
qemu = "{qemu}"
accel = "tcg"
memory = "16MiB"
[machines.one]
cpu = {{ cpus = 1, pin = "{last}" }}
[machines.two]
"""


def test_at_the_shell(
    tmp_path: Path,
    qemu: str,
    places: Places,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "farm.toml").write_text(FARM.format(qemu=qemu, last=LAST))
    monkeypatch.chdir(folder)
    shell = Shell(folder, Command(capfd))
    shell.up()
    try:
        told = shell.json("tune", "one")
        assert told["pin"] == LAST
        assert set(told["threads"]["vcpus"]) == {"0"}
        said = shell.run("tune", "two", f"pin={LAST}", "nice=19", "cpu_max=1")
        assert "two: cpu.pin, resources.nice changed" in said
        assert "resources.cpu_max of two cannot be changed while it runs" in said
        assert f"pin    {LAST}" in shell.run("tune", "two")
        assert "is from -20 to 19, not 99" in shell.run("tune", "two", "nice=99", status=2)
        assert "is not FIELD=VALUE" in shell.run("tune", "two", "nice", status=2)
        sitting = {it["machine"]: it for it in shell.json("host")["machines"]}
        for name in ("one", "two"):
            vcpus = [it for it in sitting[name]["threads"] if it["vcpu"] == 0]
            assert vcpus[0]["allowed"] == [int(LAST)]
        found = json.loads(shell.run("top", "--once", "--every", "0.2", "--json"))["machines"]
        assert [it["machine"] for it in found] == ["one", "two"]
        assert all(it["cpu"] >= 0 and it["memory"] > 1 << 20 for it in found)
        assert "two" in shell.run("top", "two", "--once", "--every", "0.2")
        shell.run("restart", "two", "--grace", "0")
        assert shell.json("tune", "two")["pin"] == LAST
    finally:
        shell.run("down", "--grace", "0")
