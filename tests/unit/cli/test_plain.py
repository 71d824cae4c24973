"""Command lines that need no parser are understood as the parser understands them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from qmpkit.cli import farm_actions, serve
from qmpkit.cli.app import run
from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.plain import plain

PLAIN = [
    ["ps"],
    ["ps", "--json"],
    ["ps", "--farm", "lab"],
    ["ps", "--json", "--farm", "lab"],
    ["ps", "--farm", "lab", "--json"],
]
FOR_THE_PARSER = [
    [],
    ["--debug", "ps"],
    ["start", "web"],
    ["ps", "web"],
    ["ps", "--help"],
    ["ps", "--farm"],
    ["ps", "--farm", "--json"],
    ["ps", "--farm", ""],
    ["ps", "--farm=lab"],
    ["ps", "--json", "--json"],
    ["ps", "--farm", "lab", "--farm", "lab"],
    ["ps", "--group", "lab"],
    ["serve", "--detach"],
    ["serve", "--farm", "lab", "--replace"],
    ["serve", "--help"],
    ["serve", "--json"],
    ["serve", "--group"],
    ["serve", "--ready-fd", "three"],
    ["serve", "--group", "-1"],
    ["serve", "lab"],
]
SERVE = [
    ["serve"],
    ["serve", "--farm", "lab"],
    ["serve", "--group", "staff", "--farm", "lab"],
    ["serve", "--farm", "lab", "--ready-fd", "6", "--log-file", "/tmp/daemon.log"],
]


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_a_plain_line_is_read_as_the_parser_reads_it(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def ps(farm: str | None, *, as_json: bool) -> int:
        called.append((farm, as_json))
        return Exit.FAILED

    monkeypatch.setattr(farm_actions, "ps", ps)
    runner = plain(words)
    assert runner is not None
    assert runner() == run(words) == Exit.FAILED
    assert called[0] == called[1]


@pytest.mark.parametrize("words", SERVE, ids=" ".join)
def test_so_is_that_of_a_daemon(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    async def serve_farm(*arguments: object) -> int:
        await trio.lowlevel.checkpoint()
        called.append(arguments)
        return Exit.FAILED

    monkeypatch.setattr(serve, "serve_farm", serve_farm)
    runner = plain(words)
    assert runner is not None
    assert runner() == run(words) == Exit.FAILED
    assert called[0] == called[1]


@pytest.mark.parametrize("words", FOR_THE_PARSER, ids=" ".join)
def test_all_else_is_the_parsers(words: list[str]) -> None:
    assert plain(words) is None


def test_an_error_leaves_a_plain_line_as_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ps(farm: str | None, *, as_json: bool) -> int:
        raise Refusal("not here")

    monkeypatch.setattr(farm_actions, "ps", ps)
    runner = plain(["ps"])
    assert runner is not None
    assert runner() == Exit.MISTAKE
    assert capsys.readouterr().err == "error: not here\n"


def test_ps_loads_neither_the_parser_nor_what_machines_need(tmp_path: Path) -> None:
    code = (
        "import sys; from qmpkit.cli import main; status = main(['ps', '--farm', 'none']);"
        "print(status, [m for m in ('cyclopts', 'trio', 'asyncio', 'cattrs', 'qemu', 'starlette')"
        " if m in sys.modules])"
    )
    places = {"QMPKIT_STATE_DIR": str(tmp_path), "QMPKIT_RUNTIME_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=places,
    )
    assert ran.stdout == "1 []\n"
    assert "no daemon runs for farm 'none'" in ran.stderr


def test_a_daemon_holds_no_parser(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, threading; reads, writes = os.pipe()\n"
        "def look():\n"
        "    print(os.read(reads, 9), [m for m in ('cyclopts', 'qmpkit.cli.app') if m in"
        " sys.modules], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=look).start()\n"
        "from qmpkit.cli import main\n"
        "sys.exit(main(['serve', '--farm', 'lab', '--ready-fd', str(writes)]))"
    )
    with tempfile.TemporaryDirectory(prefix="qk-") as runtime:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"QMPKIT_STATE_DIR": str(tmp_path), "QMPKIT_RUNTIME_DIR": runtime},
        )
    assert (ran.returncode, ran.stdout) == (0, "b'ready\\n' []\n"), ran.stderr
