"""`qmpkit exec` by a daemon: the program's output and status are ours, its stdin has a bound."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import main
from qmpkit.cli.guest_exec import STDIN_LIMIT
from tests.unit.cli.daemons import scripted


def _done(**fields: Any) -> dict[str, Any]:
    plain = {"exit": 0, "signal": None, "stdout_base64": "", "stderr_base64": ""}
    return {**plain, "truncated": False, **fields}


def _answers(done: dict[str, Any]) -> dict[str, Any]:
    return {
        "GET /machines": {"machines": [{"name": "web1"}, {"name": "web2"}]},
        "POST /machines/web1/exec": done,
    }


def _piped(monkeypatch: pytest.MonkeyPatch, raw: io.BufferedIOBase) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(raw))  # type: ignore[type-var]


class Endless(io.RawIOBase):
    """`yes`: whoever reads it to its end never returns."""

    def __init__(self) -> None:
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        buffer[:] = b"y" * len(buffer)
        return len(buffer)


def test_output_and_status(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    _piped(monkeypatch, io.BytesIO(b"\xffin"))
    out, err = base64.b64encode(b"\x00out").decode(), base64.b64encode(b"err").decode()
    done = _done(exit=7, stdout_base64=out, stderr_base64=err, truncated=True)
    with scripted(root, _answers(done)) as daemon:
        assert main(["exec", "web1", "--", "sh", "-c", "exit 7", "--farm"]) == 7
    said = capfdbinary.readouterr()
    assert said.out == b"\x00out"
    assert said.err.startswith(b"err")
    assert b"warning: it wrote more than the guest's agent keeps" in said.err
    body = daemon.asked[-1][1]
    assert body["argv"] == ["sh", "-c", "exit 7", "--farm"]
    assert base64.b64decode(body["stdin_base64"]) == b"\xffin"


def test_one_that_a_signal_ended(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _piped(monkeypatch, io.BytesIO())
    with scripted(root, _answers(_done(exit=None, signal=9))):
        assert main(["exec", "web1", "sleep", "1"]) == 137


@pytest.mark.parametrize(("more", "status"), [(0, 0), (1, 2)])
def test_the_bound_of_stdin(
    more: int,
    status: int,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _piped(monkeypatch, io.BytesIO(bytes(STDIN_LIMIT + more)))
    with scripted(root, _answers(_done())):
        assert main(["exec", "web1", "cat"]) == status
    if status:
        said = capsys.readouterr().err
        assert "stdin for 'cat' in machine 'web1' has more than 512 KiB" in said
        assert "`… | qmpkit cp - web1:/tmp/input`" in said


def test_an_endless_stdin_is_not_read_to_its_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    _piped(monkeypatch, io.BufferedReader(endless))
    with scripted(root, _answers(_done())):
        assert main(["exec", "web1", "cat"]) == 2
    assert endless.taken < 3 * STDIN_LIMIT


def test_several_machines(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(root, _answers(_done())):
        assert main(["exec", "web*", "ls"]) == 2
    assert "'web*' means several machines: web1, web2" in capsys.readouterr().err


def test_words_that_are_no_text_are_a_mistake(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(root, _answers(_done())) as daemon:
        assert main(["exec", "web1", "--", "echo", "\udcff"]) == 2
        assert main(["cp", "web1:/\udcff", "-"]) == 2
        assert daemon.asked == []
    assert "QEMU takes no text that is not UTF-8" in capsys.readouterr().err
