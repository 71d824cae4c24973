"""Standard streams that are closed, or that cannot write every character."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.sizes import size

COMMAND = shlex.join([sys.executable, "-m", "qmpkit.cli"])


def shell(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        check=False,
        timeout=60,
    )


WORDS = {"profiles": 0, "profiles --json": 0, "doctor --require kvm,nested": None, "none": 2}
CLOSED = [">&-", "2>&-", "<&-", ">&- 2>&- <&-"]


@pytest.mark.parametrize(("closed", "words"), [*product(CLOSED, WORDS)][:: size(ci=3, long=1)])
def test_a_closed_stream_is_dev_null(closed: str, words: str, tmp_path: Path) -> None:
    ran = shell(f"{COMMAND} {words} {closed}", tmp_path, PATH=str(tmp_path))
    if (status := WORDS[words]) is not None:
        assert ran.returncode == status, ran.stderr
    assert b"Traceback" not in ran.stdout + ran.stderr
    assert ran.stdout == b"" or ">&-" not in closed.replace("2>&-", "")
    assert ran.stderr == b"" or "2>&-" not in closed


def test_children_find_their_streams_open(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "from qmpkit.cli import main\n"
        "main(['--version'])\n"
        "place = open('place', 'w')\n"
        "assert place.fileno() > 2\n"
        "tell = 'import os, sys; sys.stderr.write(os.readlink(\"/proc/self/fd/1\"))'\n"
        "subprocess.run([sys.executable, '-c', tell])\n"
    )
    ran = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} >&-", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, b"/dev/null")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_text_can_be_written(encoding: str, tmp_path: Path) -> None:
    """A program that reads us gets a name's bytes; JSON is ASCII, and gives them back."""
    argv = f"{COMMAND} argv q35 --sockets $'\\xff' '--set=extra_args=[\"ä\"]'"

    def ran(words: str) -> bytes:
        done = shell(words, tmp_path, PYTHONIOENCODING=encoding)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        return done.stdout

    assert b"\xc3\xa4" in ran(argv) or encoding == "ascii"
    words = json.loads(ran(f"{argv} --json").decode("ascii"))
    assert "ä" in words
    assert any(b"path=\xff/vm-qmp.sock" in os.fsencode(word) for word in words)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    ran = shell(f"{COMMAND} run $'\\xff.qcow2'", tmp_path)
    assert (ran.returncode, ran.stderr) == (2, b"error: \\xff.qcow2: there is no such file\n")
