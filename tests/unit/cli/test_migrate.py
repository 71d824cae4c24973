"""`qmpkit migrate` and `receive`: words that do not fit together move nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qmpkit.cli import main
from qmpkit.cli.receive import _Front


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


def _no_certificates(folder: Path) -> Path:
    for name in ("ca-cert", "server-cert", "server-key", "client-cert", "client-key"):
        (folder / f"{name}.pem").write_text("none")
    return folder


def test_what_are_no_certificates_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--listen", "127.0.0.1:4455", "--tls", str(_no_certificates(tmp_path))]
    assert main(["receive", *words]) == 2
    assert f"tls: the certificates in {tmp_path} cannot be used" in capsys.readouterr().err


async def test_certificates_that_were_spoilt_do_not_end_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = _Front(tmp_path / "door", {}, None, as_json=False)
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    async with listener[0], await trio.open_tcp_stream("127.0.0.1", port):
        tcp = await listener[0].accept()
        await front.serve(tcp, _no_certificates(tmp_path), trio.CapacityLimiter(1))
    assert "127.0.0.1: where to migrate: tls: the certificates in" in capsys.readouterr().err
