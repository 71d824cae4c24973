"""A daemon of another qmpkit: the command works, and says what to do."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from qmpkit import __version__
from qmpkit.cli import main
from qmpkit.cli.daemon import _compare, _group_again
from tests.unit.cli.daemons import scripted

ANSWERS: dict[str, object] = {"GET /machines": {"machines": []}}
CURE = "Cure: `qmpkit serve --farm lab --replace --detach`, or restart its service"


@pytest.mark.parametrize(
    ("version", "its"), [("99.0", "qmpkit 99.0"), (None, "an earlier qmpkit"), (__version__, "")]
)
def test_it_is_told_once(
    version: str | None, its: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _compare.cache_clear()
    with scripted(root, ANSWERS, version):
        (root / "run" / "lab" / ".api" / "http").chmod(0o600)
        assert main(["ps", "--json"]) == 0
        assert main(["ps", "--json"]) == 0
    said = capsys.readouterr()
    assert said.out == "[]\n" * 2
    if not its:
        assert said.err == ""
        return
    assert said.err.count("warning: ") == 1
    assert f"farm 'lab' is {its}, and this command is {__version__}" in said.err
    assert CURE in said.err


def test_the_next_daemon_is_open_to_whom_this_one_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _compare.cache_clear()
    group = grp.getgrgid(os.getegid()).gr_name
    with scripted(root, ANSWERS, "99.0"):
        path = root / "run" / "lab" / ".api" / "http"
        path.chmod(0o660)
        os.chown(path, -1, os.getegid())
        assert main(["ps", "--json"]) == 0
        said = capsys.readouterr().err
        assert f"`qmpkit serve --farm lab --group {group} --replace --detach`" in said
        monkeypatch.setattr(grp, "getgrgid", {}.__getitem__)
        assert _group_again(path) == " [--group ITS-GROUP]"
    path.unlink()
    assert _group_again(path) == " [--group ITS-GROUP]"
