"""Output that cannot be written: one line when its place is full, none when nobody reads on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import main
from tests.unit.cli.daemons import scripted

COMMAND = shlex.join([sys.executable, "-m", "qmpkit.cli"])
TOLD = {"sequence": 5, "time": 0.0, "machine": "web1", "state": "gone", "cause": ""}
ROW: dict[str, Any] = {"name": "web1", "state": "running", "health": None, "declared": "running"}
ROW |= {"since": 1.0, "pid": 7, "memory": 1 << 30, "cpus": 2, "cause": "RESUME"}
ANSWERS = {
    "GET /machines": {"machines": [ROW]},
    "GET /events": f"event: happening\ndata: {json.dumps(TOLD)}\n\n" * 2,
    "GET /machines/web1/logs": "a line\n" * 10,
}
LOCAL = ["profiles", "host --json", "--help", "image --help", "--version", "completion bash"]
OF_A_FARM = ["ps", "ps --json", "events", "events --json", "events -f", "logs web1 -f"]


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("words", [*LOCAL, *OF_A_FARM])
def test_a_full_place_is_told_in_one_line(words: str, root: Path) -> None:
    with scripted(root, ANSWERS):
        ran = shell(f"{COMMAND} {words} > /dev/full", root)
    assert ran.stderr == b"error: the output cannot be written: No space left on device\n"
    assert ran.returncode == 1


@pytest.mark.parametrize("words", [*LOCAL, *OF_A_FARM])
def test_a_reader_that_leaves_is_no_error(words: str, root: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)  # before anything is written
    try:
        with scripted(root, ANSWERS):
            ran = subprocess.run(
                [sys.executable, "-m", "qmpkit.cli", *words.split()],
                stdout=writes,
                stderr=subprocess.PIPE,
                cwd=root,
                check=False,
                timeout=60,
            )
    finally:
        os.close(writes)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_in_a_task_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*, as_json: bool) -> None:
        raise ExceptionGroup("tasks", [BrokenPipeError(32, "Broken pipe")])

    monkeypatch.setattr("qmpkit.cli.host.show_host", broken)
    monkeypatch.setattr("qmpkit.cli.report._drop_output", lambda: None)
    assert main(["host"]) == 141
    assert capsys.readouterr().err == ""
