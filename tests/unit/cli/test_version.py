"""A daemon of another qmpkit: the command works, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit import __version__
from qmpkit.cli import main
from qmpkit.cli.daemon import _compare
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
