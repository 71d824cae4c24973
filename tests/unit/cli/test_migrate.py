"""`qmpkit migrate` and `receive`: words that do not fit together move nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--here"], "--here is your word for --settle"),
        (["--collapse"], "--collapse is of disks that move too"),
        (["--disks", ""], "--disks is empty"),
    ],
)
def test_words_without_their_others(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "web", *words]) == 2
    assert said in capsys.readouterr().err


def test_all_that_is_wrong_with_receive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything listens, and before a daemon is started."""
    words = ["--listen", "127.0.0.1:4455", "--memory-port", "4455", "--allow", "/nonesuch"]
    assert main(["receive", *words, "--tls", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    for fault in ("4455 is that of --listen", "'/nonesuch' is no directory", "ca-cert.pem"):
        assert fault in said
