"""`qmpkit image pull`, `ls`, `rm`, `gc`, `verify`, and an image's name where one is wanted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmpkit import Overlay, images
from qmpkit.cli import main
from qmpkit.cli.chosen import ImageOptions, chosen_machine
from qmpkit.errors import HostLacks, SpecInvalid
from qmpkit.images.store import web
from tests.unit.images.store.server import Page, Server, serving

BODY = b"x\0" * 256 * 8  # no text

Shown = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the store is in it."""
    monkeypatch.setenv("QMPKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("QMPKIT_IMAGES_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(web, "PAUSES", ())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.raw").write_bytes(BODY)
    return tmp_path


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as ours:
        yield ours


def test_a_life_of_an_image(folder: Path, capsys: Shown, server: Server) -> None:
    url = server.put("/web.raw", BODY)
    assert main(["image", "pull", url]) == 0
    out, err = capsys.readouterr()
    path = Path(out.strip())
    assert path.read_bytes() == BODY
    assert path.is_relative_to(folder / "state" / ".images")
    assert err.startswith("web: raw, 4 KiB, sha256 ")
    assert "nothing vouches for it: --sha256 or --checksums would\n" in err

    assert main(["image", "ls"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["NAME", "DIGEST", "FORMAT"]
    assert row.split()[:3] == ["web", path.stem[:12], "raw"]
    assert url in row
    assert main(["image", "ls", "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert (table["path"], table["names"], table["size"]) == (str(path), ["web"], len(BODY))

    assert main(["image", "verify"]) == 0
    assert capsys.readouterr().out == "web: sound\n"
    path.chmod(0o600)
    path.write_bytes(b"y" * len(BODY))
    assert main(["image", "verify", "web"]) == 1
    out, err = capsys.readouterr()
    assert out == "web: its content is another one by now\n"
    assert "qmpkit image pull --refresh mends it" in err
    assert main(["image", "pull", url, "--refresh"]) == 0
    assert main(["image", "rm", "web"]) == 0
    assert capsys.readouterr().err.endswith("web: removed, 4 KiB\n")
    assert main(["image", "ls"]) == 0
    assert capsys.readouterr() == (
        "",
        "the store is empty; qmpkit image ls --catalogue tells what can be pulled\n",
    )


def test_an_interruption_is_gone_on_with(folder: Path, capsys: Shown, server: Server) -> None:
    body = BODY * 800
    url = server.put("/web.raw", body, stall=[len(body) - 1000])
    words = [sys.executable, "-m", "qmpkit.cli", "image", "pull", url]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as command:
        data = folder / "state" / ".images" / "partial"
        while not any(path.stat().st_size > 1 << 20 for path in data.glob("*/data")):
            assert command.poll() is None
            time.sleep(0.01)
        command.send_signal(signal.SIGINT)
        assert command.communicate(timeout=10)[1] == "error: interrupted\n"
    assert command.returncode == 130
    assert main(["image", "pull", url]) == 0
    assert Path(capsys.readouterr().out.strip()).read_bytes() == body
    assert server.asked[1][1].startswith("bytes=")


def test_what_vouches_for_it_is_said(folder: Path, capsys: Shown) -> None:
    digest = trio.run(images.Store(folder / "other").pull, folder / "disk.raw").digest
    (folder / "SHA256SUMS").write_text(f"{digest}  disk.raw\n")
    assert main(["image", "pull", "disk.raw", "--checksums", "SHA256SUMS", "--name", "mine"]) == 0
    err = capsys.readouterr().err
    assert "mine: raw, " in err
    assert err.endswith(f"checked by sha256 in {folder}/SHA256SUMS\n")


def test_an_overlay_by_name(folder: Path, capsys: Shown) -> None:
    assert main(["image", "pull", "disk.raw", "--name", "base"]) == 0
    path = capsys.readouterr().out.strip()
    assert main(["image", "overlay", "top.qcow2", "base"]) == 0
    (top, below) = trio.run(images.chain, "top.qcow2")
    assert str(below.path) == path
    assert main(["image", "rm", "base"]) == 2
    assert f"'{folder}/top.qcow2' is on it. Cure: remove what is on it first" in (
        capsys.readouterr().err
    )
    top.path.unlink()
    assert main(["image", "rm", "base"]) == 2
    assert "it was deleted or moved" in capsys.readouterr().err
    assert main(["image", "rm", "base", "--gone"]) == 0
    # A file of that name goes before.
    (folder / "base").write_bytes(BODY)
    assert main(["image", "overlay", "top.qcow2", "base"]) == 0


async def test_a_machine_around_it_by_name(folder: Path) -> None:
    image = await images.Store().pull("disk.raw", name="lab-1.0")
    async with chosen_machine("lab-1.0", (), ImageOptions(keep=folder / "kept.qcow2")) as chosen:
        spec = chosen.spec
    assert spec.name == "lab-1.0"
    assert spec.disks[0].make == Overlay(str(image.path), format="raw")
    async with chosen_machine("lab-1.0", ("name=mine",), ImageOptions()) as chosen:
        assert chosen.spec.name == "mine"
    with pytest.raises(SpecInvalid, match="is in the image store, where others build on it"):
        async with chosen_machine("lab-1.0", (), ImageOptions(write=True)):
            pytest.fail("nothing runs")
    # Profiles go before, and so do files.
    await images.Store().pull("disk.raw", name="tiny")
    async with chosen_machine("tiny", (), ImageOptions()) as chosen:
        assert not chosen.from_image


def test_gc(folder: Path, capsys: Shown) -> None:
    assert main(["image", "pull", "disk.raw"]) == 0
    first = capsys.readouterr().out.strip()
    (folder / "disk.raw").write_bytes(b"y" * 512)
    assert main(["image", "pull", "disk.raw"]) == 0
    capsys.readouterr()
    assert main(["image", "gc", "--dry-run"]) == 0
    assert capsys.readouterr().err == f"{first}: would go\n4 KiB would be freed\n"
    assert main(["image", "overlay", "top.qcow2", first]) == 0
    capsys.readouterr()
    assert main(["image", "gc"]) == 0
    digest = Path(first).stem[:12]
    told = f"{digest} stays: '{folder}/top.qcow2' is on it\n0 B freed\n"
    assert capsys.readouterr().err == told
    (folder / "top.qcow2").unlink()
    assert main(["image", "gc", "--gone", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["removed"], report["freed"]) == ([first], 4096)
    assert [kept["why"] for kept in report["kept"]] == [["it is called disk"]]


def test_the_catalogue(capsys: Shown) -> None:
    assert main(["image", "ls", "--catalogue"]) == 0
    assert "debian-12" in capsys.readouterr().out
    assert main(["image", "ls", "--catalogue", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["debian-12"]["checksums"] == "SHA512SUMS"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["pull", "debain-12"], 2, "no image of the catalogue, no file and no URL (did you mean"),
        (["pull", "ftp://example.org/a"], 2, "is no address to pull from"),
        (["pull", "./none.raw"], 2, "none.raw': No such file or directory"),
        (["pull", "disk.raw", "--sha256", "abc"], 2, "is no SHA-256"),
        (["pull", "disk.raw", "--sha256", "ab" * 32], 1, "it is not what its sha256 says"),
        (["pull", "disk.raw", "--format", "qcow2"], 1, "it is raw, not qcow2 as stated"),
        (["rm", "none"], 2, "there is no image 'none' in the store"),
        (["rm"], 2, "requires an argument"),
        (["verify", "none"], 2, "there is no image 'none' in the store"),
        (["overlay", "top.qcow2", "none"], 2, "there is no such file"),
    ],
)
def test_mistakes_are_sentences(capsys: Shown, words: list[str], status: int, said: str) -> None:
    assert main(["image", *words]) == status
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert (out, err.count("error: ")) == ("", 1)


def test_a_server_without_it(capsys: Shown, server: Server) -> None:
    server.pages["/disk.raw"] = Page(status=[404])
    assert main(["image", "pull", server.url("/disk.raw")]) == 1
    assert capsys.readouterr().err == (
        f"error: cannot pull '{server.url('/disk.raw')}': the server says 404 Not Found: there is "
        "no such file. Cure: is the address right?\n"
    )


def test_without_the_extra(capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise HostLacks("pulling from a URL needs httpx", "pip install 'qmpkit[images]'")

    monkeypatch.setattr(web, "_httpx", refuse)
    assert main(["image", "pull", "debian-12"]) == 3
    assert capsys.readouterr().err.endswith("Cure: pip install 'qmpkit[images]'\n")


def test_a_store_that_cannot_be_made(
    folder: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMPKIT_IMAGES_DIR", os.fspath(folder / "disk.raw" / "images"))
    assert main(["image", "pull", "disk.raw"]) == 3
    assert capsys.readouterr().err.endswith("Cure: name another place: QMPKIT_IMAGES_DIR=…\n")
