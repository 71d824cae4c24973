"""What the first word of `qmpkit run` means."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.cli import main
from qmpkit.cli.chosen import ImageOptions, chosen_machine, means_image
from qmpkit.cli.exits import Refusal
from qmpkit.errors import SpecInvalid
from tests.unit.host.images_on_disk import qcow2, raw


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_by_their_content(here: Path) -> None:
    qcow2(here / "disk")
    raw(here / "other.txt")
    (here / "d.vmdk").write_bytes(b"# Disk DescriptorFile\nversion=1\n")
    for word in ("disk", "./disk", "other.txt", "d.vmdk", str(here / "disk")):
        assert means_image(word), word


def test_profiles(here: Path) -> None:
    qcow2(here / "tiny")
    (here / "web").write_text('schema = 1\nname = "web"\n')
    assert not means_image("tiny"), "a shipped profile's name wins"
    assert means_image("./tiny")
    for word in ("web.toml", "./web.toml", "./web", "q53", "./none", "a\0b"):
        assert not means_image(word), word


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("none.qcow2", "none.qcow2: there is no such file"),
        ("disc.qcow2", "disc.qcow2: there is no such file (did you mean 'disk.qcow2'?)"),
        ("folder", "folder: this is a directory, not a disk image"),
        ("empty.img", "empty.img: the file is empty, not a disk image"),
    ],
)
def test_neither(word: str, why: str, here: Path) -> None:
    qcow2(here / "disk.qcow2")
    (here / "folder").mkdir()
    (here / "empty.img").touch()
    with pytest.raises(SpecInvalid) as caught:
        means_image(word)
    assert str(caught.value) == why


@pytest.mark.parametrize("word", ["notes.txt", "./notes.txt", "notes"])
def test_a_text(word: str, here: Path) -> None:
    # Cut in the middle of a character where it is read.
    (here / "notes.txt").write_text("x" * 511 + "ä")
    (here / "notes").write_text("buy milk\n")
    with pytest.raises(Refusal, match="is a text, neither a disk image nor a profile"):
        means_image(word)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--write"], "--write fits a disk image"),
        (["--keep=x", "--user=me", "--port=0:80"], "--keep, --user, --port fit a disk image"),
        (["--ssh-key=a", "--ssh-key=b"], "--ssh-key fits a disk image"),
    ],
)
def test_options_of_an_image_do_not_fit_a_profile(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "q35", *options]) == 2
    err = capsys.readouterr().err
    assert err == f"error: {told}, and 'q35' is a profile. Cure: --set changes a profile\n"


def test_argv_is_for_profiles(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qcow2(here / "disk.qcow2")
    assert main(["argv", "disk.qcow2"]) == 2
    assert capsys.readouterr().err.startswith("error: 'disk.qcow2' is a disk image, and this")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port=80"], "--port: '80' is not HOSTPORT:GUESTPORT (for example 8080:80)"),
        (["--write", "--keep=k"], "into the image or into an overlay, not into both"),
        (["--memory=1X"], "memory.size: '1X' has an unknown unit 'X'"),
        (["--cpus=0"], 'Invalid value "0" for --cpus'),
        (["--arch=mips"], '"x86_64", "aarch64", "riscv64"'),
        (["--format=qcow3"], 'Invalid value "qcow3" for --format. Choose from: "qcow2", "raw"'),
        (["--user=me"], "there is no public key (*.pub) in "),
        (["--user=me", "--ssh-key=key"], "--ssh-key key: this is the private key. Cure: name key"),
        (["--user=me", "--ssh-key=no"], "--ssh-key no: cannot be read: No such file or directory"),
        (["--user=me", "--ssh-key=disk.raw"], "--ssh-key disk.raw: cannot be read: it is no text"),
    ],
)
def test_mistakes_with_an_image(
    options: list[str],
    told: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("TMPDIR", str(here / "scratch"))
    (here / "scratch").mkdir()
    raw(here / "disk.raw", b"\xff" * 4096)
    (here / "key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert main(["run", "disk.raw", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err
    assert list((here / "scratch").iterdir()) == []


def test_an_empty_name(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a script's unset variable; a path that is empty is the current directory."""
    assert main(["run", ""]) == 2
    told = "error: the name is empty: name a disk image, a profile or a profile's file\n"
    assert capsys.readouterr().err == told
    assert main(["image", "info", ""]) == 2
    assert capsys.readouterr().err.startswith("error: The name is empty. Try")


def test_an_image_that_may_not_be_written(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw(here / "disk.raw", b"\xff" * 4096)
    monkeypatch.setattr("os.access", lambda path, *_, **__: not str(path).endswith("disk.raw"))
    assert main(["run", "disk.raw", "--write"]) == 2
    assert capsys.readouterr().err == (
        f"error: --write: '{here}/disk.raw' may not be written "
        "(leave --write out: the image then stays as it is)\n"
    )


async def test_a_cd_without_a_loader(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, loads in (("loads.iso", True), ("data.iso", False)):
        cd = bytearray(128 << 10)
        cd[32769:32774] = b"CD001"
        if loads:
            cd[34816 : 34816 + 30] = b"\0CD001\1EL TORITO SPECIFICATION"
        (here / name).write_bytes(cd)
        async with chosen_machine(name, (), ImageOptions(arch="x86_64")):
            told = capsys.readouterr().err
        assert ("it does not boot: the CD has no loader (El Torito)" in told) is not loads


def test_no_place_for_what_is_thrown_away(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(here / "none"))
    raw(here / "disk.raw", b"\xff" * 4096)
    assert main(["run", "disk.raw"]) == 3
    err = capsys.readouterr().err
    assert f"no directory can be made in '{here}/none'" in err
    assert "Cure: name another place: TMPDIR=" in err


def test_a_strangers_image_is_held_to_folders(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qcow2(here / "disk.qcow2", "/etc/shadow", backing_format="raw")
    assert main(["run", "disk.qcow2", "--allow", "/srv", "--allow", str(here)]) == 1
    assert "'/etc/shadow' of" in (told := capsys.readouterr().err)
    assert "is outside the allowed folders. Cure: if you trust the image, allow '/etc'" in told
    assert main(["run", "tiny", "--allow", "/srv"]) == 2
    assert "--allow fits a disk image" in capsys.readouterr().err
