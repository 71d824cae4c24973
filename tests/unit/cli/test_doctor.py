"""`qmpkit doctor` on six recorded hosts: every line, every cure, the exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import main
from qmpkit.host.doctor import NEEDS, Host, examination
from tests.unit.host.doctor.recorded import HOSTS, NAMES, recorded

_SLOW = "Asking each QEMU what it can do; the answers are kept …\n"  # after a second
_ESCAPE = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def host(name: str, tmp_path: Path) -> Host:
    return recorded(name, tmp_path)


def _command(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str
) -> tuple[int, str]:
    monkeypatch.setattr(examination, "Host", lambda: host)
    status = main(["doctor", *argv])
    out, err = capsys.readouterr()
    assert err.replace(_SLOW, "") == ""
    return status, out


def test_every_line_and_cure(
    name: str, host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`hosts/NAME.txt` is what the command prints, read and judged by a person."""
    _, out = _command(host, monkeypatch, capsys)
    assert out == (HOSTS / f"{name}.txt").read_text()


STATUS: dict[str, dict[str, int]] = {
    "intel": {"": 0, "kvm": 0, "kvm,uefi,images": 0, "aarch64": 3, "tpm": 3},
    "amd_denied": {"": 0, "images,x86_64": 0, "kvm": 3, "tap,bridge": 0, "vhost-net": 3},
    "arm": {"": 0, "kvm,aarch64,limits,hugepages": 0, "riscv64": 3},
    "kvm_pvm": {"": 0, "kvm": 3, "run,riscv64": 0, "uefi": 3},
    "container": {"": 0, "images": 3, "kvm": 3},
    "no_kvm": {"": 3, "run": 3, "limits": 0, "kvm": 3},
}


def test_every_host_has_its_statuses() -> None:
    assert sorted(STATUS) == NAMES


@pytest.mark.parametrize(
    ("name", "require", "expected"),
    [(name, need, status) for name, cases in STATUS.items() for need, status in cases.items()],
)
def test_exit_status(
    name: str,
    require: str,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--require", require] if require else []
    status, out = _command(recorded(name, tmp_path), monkeypatch, capsys, *options)
    assert status == expected
    assert out.splitlines()[-1].startswith("FAIL: " if expected else "ok: ")
    assert ("\n  FAIL  " in out) == bool(expected)


def test_json_says_the_same(
    name: str, host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = _command(host, monkeypatch, capsys, "--json", "--require=kvm")
    report = json.loads(out)
    assert list(report) == ["verdict", "host", "required", "can", "findings"]
    assert (report["verdict"] == "fail") == (status == 3)
    assert report["required"] == ["kvm"]
    assert list(report["can"]) == list(NEEDS)
    assert list(report["host"]) == ["os", "kernel", "arch", "container", "user"]
    kinds: dict[str, type[Any]] = {
        "topic": str,
        "name": str,
        "verdict": str,
        "found": str,
        "enough_for": str,
        "lacks": list,
        "cure": str,
        "facts": dict,
    }
    for found in report["findings"]:
        assert {key: type(value) for key, value in found.items()} == kinds
    text = (HOSTS / f"{name}.txt").read_text()
    assert all(found["found"] in text and found["cure"] in text for found in report["findings"])


@pytest.mark.parametrize("columns", [40, 80])
def test_narrow_terminals_stay_readable(
    columns: int,
    name: str,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only cures are left to the terminal to break, so that they can be copied."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    _, out = _command(host, monkeypatch, capsys)
    text = _ESCAPE.sub("", out)
    lines = [line for line in text.splitlines() if not line.startswith("        cure: ")]
    assert max(len(line) for line in lines[1:]) <= columns
    assert "…" not in text.replace("qmpkit …", "")
    assert not re.search("\x1b\\[[0-9;]*3[0-9]m", out), "NO_COLOR is heeded"


def test_the_same_host_gives_the_same_report(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command(host, monkeypatch, capsys) == _command(host, monkeypatch, capsys)


def test_a_need_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--require", "run,kmv"]) == 2
    assert capsys.readouterr().err == (
        "error: --require: there is no 'kmv' (did you mean 'kvm'?)\n"
    )
    assert main(["doctor", "--require", "?"]) == 2
    assert "choose from run, kvm, nested" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", ",", "run,", " "])
def test_no_need_at_all_is_none_that_is_met(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unset variable of a script must not pass for a check."""
    assert main(["doctor", "--require", words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --require: a name is missing (choose from run, kvm, nested,")


def test_the_help_explains_every_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    told = {words[0]: words[1] for words in lines if len(words) == 2}
    assert {need: told.get(need) for need in NEEDS} == dict(NEEDS)
