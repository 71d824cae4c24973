"""`qmpkit image …` on real images, at a terminal and away from one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.cli import image as commands
from qmpkit.errors import ImageFailed
from qmpkit.testing import guests
from tests.live.commands import COMMAND, piped, rest, said, terminal
from tests.live.in_process import Command, Ran, without_waits

pytestmark = pytest.mark.live


def process(*words: str, cwd: Path) -> Ran:
    argv = [*COMMAND, "image", *words]
    ran = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in ran.stderr
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def large(path: Path) -> Path:
    """An image that takes seconds to compress."""
    with path.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    return path


def test_a_life_of_an_image(tmp_path: Path, image: Command) -> None:
    made = image("create", "a disk.qcow2", "1GiB")
    assert made == (0, "", "a disk.qcow2: an empty qcow2 of 1 GiB (1073741824 bytes) is made\n")
    again = image("create", "a disk.qcow2", "2GiB")
    assert (again.status, again.out) == (2, "")
    assert again.err.startswith("error: a disk.qcow2 exists already. Cure: choose another name")

    over = image("overlay", "top.qcow2", "a disk.qcow2")
    assert over.err.splitlines() == [
        "top.qcow2: an overlay of 1 GiB (1073741824 bytes) is made",
        "a disk.qcow2: format qcow2 (from its header); from now on it must not change",
    ]
    grown = image("resize", "top.qcow2", "+1GiB")
    assert grown.status == 0
    assert "from 1 GiB (1073741824 bytes) to 2 GiB (2147483648 bytes)" in grown.err
    smaller = image("resize", "top.qcow2", "512MiB")
    assert (smaller.status, smaller.out) == (2, "")
    assert "what lies in the last 1.5 GiB would be lost. Cure: --shrink" in smaller.err
    assert image("resize", "top.qcow2", "-1GiB", "--shrink").status == 0

    shown = image("info", "top.qcow2").out.splitlines()
    assert shown[0].split() == ["IMAGE", "FORMAT", "SIZE", "ON", "DISK"]
    assert shown[1].startswith(f"{tmp_path}/top.qcow2")
    assert "1 GiB (1073741824 bytes)" in shown[1]
    assert shown[2].startswith("└ a disk.qcow2")
    assert shown[3:] == ["format qcow2 (from its header)", "clusters of 64 KiB"]

    rows = json.loads(image("info", "top.qcow2", "--json").out)
    assert [Path(row["path"]).name for row in rows] == ["top.qcow2", "a disk.qcow2"]
    assert rows[0]["virtual_size"] == 1 << 30
    assert rows[0]["backing_path"] == str(tmp_path / "a disk.qcow2")
    assert not rows[0]["in_use"]

    copied = image("convert", "top.qcow2", "flat.raw", "--format", "raw")
    assert copied.status == 0
    assert "flat.raw: raw, 1 GiB, " in copied.err
    assert (tmp_path / "flat.raw").stat().st_size == 1 << 30
    refused = image("convert", "top.qcow2", "flat.raw")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith("error: flat.raw exists already. Cure: --replace")
    assert image("convert", "top.qcow2", "flat.raw", "--replace").status == 0
    assert image("info", "flat.raw", "--json").out.count('"qcow2"') == 1
    assert names(tmp_path) == ["a disk.qcow2", "flat.raw", "top.qcow2"]


def test_check_tells_by_its_status(tmp_path: Path, image: Command) -> None:
    image("create", "a.qcow2", "1MiB")
    sound = image("check", "a.qcow2")
    assert sound[:2] == (0, f"{tmp_path}/a.qcow2: sound\n")
    path = tmp_path / "a.qcow2"
    with path.open("r+b") as file:  # a cluster more, which nothing refers to, marked as used
        file.seek(2 * 65536 + 2 * 8)
        file.write(b"\0\1")
        file.truncate(9 * 65536)
    leaking = image("check", "a.qcow2")
    assert leaking.status == 0
    assert leaking.out == f"{path}: sound, 1 leaked cluster\n"
    assert "--repair leaks frees them" in leaking.err
    mended = image("check", "a.qcow2", "--repair", "leaks")
    assert mended[:2] == (0, f"{path}: sound\n")
    assert "mended: 1 leaked cluster\n" in mended.err
    with path.open("r+b") as file:  # the first cluster of the image's own, as if it were free
        file.seek(2 * 65536)
        file.write(b"\0\0")
    damaged = image("check", "a.qcow2", "--json")
    assert damaged.status == 1
    report = json.loads(damaged.out)
    assert not report["ok"]
    assert report["corruptions"] == 1
    assert image("check", "a.qcow2").err.endswith("then try --repair all\n")


def test_who_has_it_open_and_what_is_in_it(tmp_path: Path, qemu: str, image: Command) -> None:
    image("create", "a.qcow2", "1MiB")
    subprocess.run(["qemu-img", "snapshot", "-c", "before", tmp_path / "a.qcow2"], check=True)
    node = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "a.qcow2"}}
    argv = [qemu, "-S", "-nodefaults", "-display", "none", "-name", "web,debug-threads=on"]
    argv += ["-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=n"]
    with subprocess.Popen(argv, cwd=tmp_path) as other:
        try:
            deadline = time.monotonic() + 20
            while "in use by" not in (told := image("info", "a.qcow2")).out:
                assert time.monotonic() < deadline, told
            assert f"in use by machine 'web' (qemu-system-x86_64, pid {other.pid})" in told.out
            lines = told.out.splitlines()
            at = lines.index("Snapshots in a.qcow2:")
            assert lines[at + 1].split() == ["ID", "NAME", "TAKEN", "MACHINE", "STATE"]
            assert lines[at + 2].split()[:2] == ["1", "before"]
            refused = image("resize", "a.qcow2", "+1MiB")
            assert refused.status == 2
            assert "machine 'web'" in refused.err
        finally:
            other.kill()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["info", "none"], 2, "error: none: there is no such file\n"),
        (["info", "."], 2, "error: .: this is a directory, not a disk image\n"),
        (["check", "a.raw"], 2, "error: a.raw is raw, which has no bookkeeping"),
        (["create", "b.qcow2", "1X"], 2, "error: SIZE: '1X' has an unknown unit 'X'"),
        (["create", "b.foo", "1M", "--format=foo"], 2, 'Choose from: "qcow2", "raw"'),
        (["create", "no/b.qcow2", "1M"], 2, "error: no/b.qcow2: there is no directory 'no'"),
        (["overlay", "no/b.qcow2", "a.raw"], 2, "error: no/b.qcow2: there is no directory 'no'"),
        (["convert", "a.raw", "no/b.qcow2"], 2, "error: no/b.qcow2: there is no directory 'no'"),
        (["overlay", "a.raw", "a.raw"], 2, "error: a.raw exists already. Cure: choose another"),
        (["convert", "a.raw", "a.raw"], 2, "error: a.raw exists already. Cure: --replace puts"),
        (["create", "b.qcow2", "8388608TiB"], 2, "error: SIZE: 9223372036854775808 bytes are more"),
        (["create", "b.qcow2", "100000TiB"], 2, "error: SIZE: 109951162777600000 bytes are more"),
        (["create", "b.vpc", "3TiB", "--format=vpc"], 2, "are more than a vpc image can have"),
        (["resize", "a.raw", "huge"], 2, "error: SIZE: 'huge' is not a size"),
        (["convert", "a.raw", "b", "--source-format=qcow2"], 1, "error: "),
        (["build", "fedora"], 2, 'Choose from: "debian"'),
        (["inof", "a.raw"], 2, 'Did you mean "info"?'),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], status: int, message: str, tmp_path: Path, image: Command
) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(4096))
    ran = image(*words)
    assert (ran.status, ran.out) == (status, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert names(tmp_path) == ["a.raw"]


async def test_a_bar_at_a_terminal(tmp_path: Path) -> None:
    large(tmp_path / "a.raw")
    words = [str(tmp_path / "a.raw"), str(tmp_path / "b.qcow2"), "--compress"]
    async with terminal("image", "convert", *words) as person:
        await person.expect("━")
        await person.expect("%")
        await person.expect("b.qcow2: qcow2, 64 MiB, ")
        assert await person.process.wait() == 0


async def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    large(tmp_path / "a.raw")
    words = [str(tmp_path / "a.raw"), str(tmp_path / "b.qcow2"), "--compress"]
    async with piped("image", "convert", *words) as run:
        await said(run, "b.qcow2 …\n")
        run.send_signal(signal.SIGINT)
        assert await rest(run.stderr) == "error: interrupted\n"
        assert await run.wait() == 130
    assert names(tmp_path) == ["a.raw"]


async def interrupted(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    await trio.sleep_forever()


async def failing(*_: object, **__: object) -> None:
    raise ImageFailed("a.qcow2", "read", "gone")


@pytest.mark.parametrize("look", [interrupted, failing])
async def test_what_is_made_is_told_whatever_comes_then(
    look: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.qcow2"
    with monkeypatch.context() as patch:
        patch.setattr(images, "info", look)
        await commands.create(path, "1MiB", "qcow2")
    told = without_waits(capsys.readouterr().err)
    assert told == f"{path}: an empty qcow2 of 1 MiB (1048576 bytes) is made\n"
    assert path.exists()


async def test_a_copy_in_its_place_is_told_whatever_comes_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def show(_: str, progress: images.Progress) -> None:
        async for _fraction in progress:
            pass
        await interrupted()

    monkeypatch.setattr(commands, "show_progress", show)
    source, target = tmp_path / "a.raw", tmp_path / "b.qcow2"
    source.write_bytes(bytes(4096))
    await commands.convert(source, target, None, "qcow2", compress=False, replace=False)
    assert f"{target}: qcow2, is made of {source}\n" in capsys.readouterr().err
    assert target.exists()


def test_a_strangers_names_at_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    process("create", "a.qcow2", "1MiB", cwd=tmp_path)
    name = "s\x1b]0;pwned\x07\x1b[31mred"
    subprocess.run(["qemu-img", "snapshot", "-c", name, path], check=True)
    words = ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name]
    subprocess.run(["qemu-img", *words, tmp_path / "b.qcow2", "1M"], check=True)
    told = process("info", "a.qcow2", cwd=tmp_path)
    assert "\x1b" not in told.out
    assert r"s\x1b]0;pwned\x07\x1b[31mred" in told.out
    broken = process("info", "b.qcow2", cwd=tmp_path)
    assert "\x1b" not in broken.err
    assert r"pwned\x07\x1b[31mred" in broken.err


def test_json_of_a_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.qcow2")
    process("create", name, "1MiB", cwd=tmp_path)
    told = process("info", "--json", name, cwd=tmp_path)
    assert told.out.isascii()
    assert os.fsencode(json.loads(told.out)[0]["path"]).endswith(b"/\xff.qcow2")


def test_build_prints_the_path_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from qmpkit.cli import main

    def built(*, refresh: bool, progress: object) -> Path:
        assert callable(progress)
        progress(f"building, refresh {refresh}")
        return tmp_path / "disk.qcow2"

    monkeypatch.setattr(guests, "build_debian", built)
    assert main(["image", "build", "debian", "--refresh"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/disk.qcow2\n"
    assert err.splitlines()[0] == "building, refresh True"
    assert f"qmpkit run {tmp_path}/disk.qcow2 --user NAME" in err
