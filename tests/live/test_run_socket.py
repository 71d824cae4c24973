"""`qmpkit run` makes a monitor for other programs where nobody else can reach it."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

QMPKIT = [sys.executable, "-m", "qmpkit.cli"]


def test_the_monitor_is_in_the_runtime_directory(qemu: str) -> None:
    settings = ["--set", f"qemu={qemu}", "--set", "accel=tcg", "--set", "memory=16MiB"]
    run = subprocess.Popen(
        [*QMPKIT, "run", "microvm", "--paused", "--headless", *settings],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    with run, run.stderr:
        found = None
        while found is None:
            line = run.stderr.readline()
            assert line, "it ended before it told of a monitor"
            found = re.search(r"other programs: qmpkit qmp (\S+)", line)
        path = Path(found[1])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        asked = [*QMPKIT, "qmp", str(path), "query-status", "--json"]
        reply = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        assert json.loads(reply)["status"] == "prelaunch"
        run.send_signal(signal.SIGINT)
        run.stderr.read()
    assert run.returncode == 0
    assert not path.parent.exists()
