"""`qmpkit screenshot`: where the picture goes, and what is said when it cannot go there."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.cli import main
from tests.unit.cli.daemons import scripted

ANSWERS = {
    "GET /machines": {"machines": [{"name": "web1"}]},
    "GET /machines/web1/screenshot": "picture",
}


@pytest.fixture(autouse=True)
def folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "file"),
    [([], "web1.png"), (["-o", "a b.png"], "a b.png"), (["-o", "d"], "d/web1.png")],
)
def test_it_is_in_a_file(words: list[str], file: str, root: Path, folder: Path) -> None:
    (folder / "d").mkdir()
    with scripted(root, ANSWERS):
        assert main(["screenshot", "web1", *words]) == 0
    assert (folder / file).read_text() == "picture"


def test_it_goes_to_stdout(
    root: Path, folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with scripted(root, ANSWERS):
        assert main(["screenshot", "web1", "-o", "-"]) == 0
    assert capfdbinary.readouterr().out == b"picture"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "status", "why"),
    [
        ("no/a.png", 2, "no/a.png cannot be written: No such file or directory"),
        ("/dev/full", 1, "/dev/full cannot be written: No space left on device"),
    ],
)
def test_why_it_cannot_be_written(
    target: str, status: int, why: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(root, ANSWERS):
        assert main(["screenshot", "web1", "-o", target]) == status
    assert capsys.readouterr().err == f"error: {why}\n"
