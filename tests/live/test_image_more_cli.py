"""`qmpkit image rebase`, `commit`, `compare`, … on real images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.live.in_process import Command
from tests.sizes import NEWEST
from tests.unit.host.images_on_disk import qcow2

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST), pytest.mark.usefixtures("qemu_img")]


def test_layers(image: Command) -> None:
    image.well("create", "a.qcow2", "8MiB", "--cluster-size", "128KiB", "--extended-l2")
    assert "128 KiB" in image.well("info", "a.qcow2").out
    image.well("create", "b.qcow2", "8MiB", "--lazy-refcounts", "--preallocation=metadata")
    image.well("overlay", "top.qcow2", "a.qcow2")
    ran = image.well("rebase", "top.qcow2", "b.qcow2")
    assert ran.err.endswith("top.qcow2: is on b.qcow2; its content is what it was\n")
    for words in (["rebase", "top.qcow2"], ["rebase", "top.qcow2", "a.qcow2", "--no-base"]):
        ran = image(*words)
        assert (ran.status, ran.err) == (2, "error: say on which BASE to put it, or --no-base\n")
    ran = image.well("rebase", "top.qcow2", "a.qcow2", "--unsafe")
    assert ran.err.endswith("its name alone was changed\n")
    image.well("overlay", "other.qcow2", "a.qcow2")
    ran = image("commit", "top.qcow2")
    assert ran.status == 1
    assert f"{os.path.abspath('other.qcow2')!r}. Cure: " in ran.err  # noqa: PTH100
    Path("far", "away").mkdir(parents=True)
    Path("other.qcow2").rename("far/away/other.qcow2")
    image.well("rebase", "far/away/other.qcow2", "a.qcow2", "--unsafe")
    ran = image("commit", "top.qcow2", "--look-in", "far")
    assert (ran.status, "far/away/other.qcow2'. Cure: " in ran.err) == (1, True)
    ran = image("commit", "top.qcow2", "--look-in", "none")
    assert (ran.status, "none' is no directory" in ran.err) == (2, True)
    ran = image.well("commit", "top.qcow2", "--shared")
    assert ran.err.endswith("top.qcow2: emptied, and ready for more\n")
    ran = image.well("rebase", "top.qcow2", "--no-base")
    assert ran.err.endswith("stands alone; its content is what it was\n")
    assert image.well("compare", "top.qcow2", "a.qcow2").out == "identical\n"
    Path("c.raw").write_bytes(bytes(4096) + b"x" + bytes(4095))
    ran = image("compare", "top.qcow2", "c.raw")
    assert (ran.status, ran.out) == (1, "different: first in the sector at byte 4096\n")
    told = json.loads(image("compare", "top.qcow2", "c.raw", "--json").out)
    assert told == {"identical": False, "difference": 4096, "same_size": False}


def test_looks(image: Command) -> None:
    Path("a.raw").write_bytes(b"x" * 4096 + bytes(1 << 20))
    image.well("convert", "a.raw", "a.qcow2", "--sparse", "64KiB", "--parallel", "2")
    lines = image.well("map", "a.qcow2").out.splitlines()
    assert lines[0].split() == ["START", "BYTES", "LAYER", "WHAT", "IN", "ITS", "FILE", "AT"]
    assert lines[1].split()[:4] == ["0", "65536", "0", "data"]
    assert lines[2].split()[3] in ("zeros", "nothing")
    rows = json.loads(image.well("map", "a.qcow2", "--start", "64KiB", "--json").out)
    assert rows[0]["start"] == 65536
    assert image.well("measure", "a.qcow2", "--to", "raw").out.startswith("1 MiB (1052672 bytes)")
    assert json.loads(image.well("measure", "a.qcow2", "--json").out)["bitmaps"] == 0
    ran = image.well("bench", "a.qcow2", "--requests", "10")
    assert ran.out.startswith("10 requests of 4 KiB in ")
    ran = image("bench", "a.qcow2", "--requests", "10", "--overwrite")
    assert ran.status == 2
    assert "wants to be confirmed: all that a.qcow2 holds. Cure: --yes" in ran.err
    assert Path("a.qcow2").exists()


def test_inside(image: Command) -> None:
    image.well("create", "a.qcow2", "1MiB")
    assert image.well("snapshot", "list", "a.qcow2").out == "a.qcow2 has no snapshots\n"
    image.well("snapshot", "create", "a.qcow2", "before")
    assert image.well("snapshot", "list", "a.qcow2").out.splitlines()[1].split()[:2] == [
        "1",
        "before",
    ]
    assert image("snapshot", "create", "a.qcow2", "7").status == 2
    ran = image("snapshot", "apply", "a.qcow2", "before")
    assert ran.status == 2
    assert "and is in no snapshot. Cure: --yes" in ran.err
    image.well("snapshot", "apply", "a.qcow2", "before", "--yes")
    image.well("snapshot", "delete", "a.qcow2", "before")
    assert json.loads(image.well("snapshot", "list", "a.qcow2", "--json").out) == []
    image.well("bitmap", "add", "a.qcow2", "b", "--granularity", "4KiB")
    image.well("bitmap", "add", "a.qcow2", "c", "--disabled")
    image.well("bitmap", "merge", "a.qcow2", "b", "c")
    for change, told in (("disable", "notes no more"), ("enable", "from now on"), ("clear", "not")):
        assert told in image.well("bitmap", change, "a.qcow2", "b").err
    lines = image.well("bitmap", "list", "a.qcow2").out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["b", "4", "KiB", "recording"],
        ["c", "64", "KiB", "idle"],
    ]
    image.well("bitmap", "remove", "a.qcow2", "b")
    assert len(json.loads(image.well("bitmap", "list", "a.qcow2", "--json").out)) == 1
    ran = image("bitmap", "remove", "a.qcow2", "b")
    assert (ran.status, "Dirty bitmap 'b' not found" in ran.err) == (1, True)


def test_books(image: Command) -> None:
    image.well("create", "a.qcow2", "1MiB")
    ran = image.well("amend", "a.qcow2", "--lazy-refcounts=on", "--refcount-bits", "32")
    assert ran.err.endswith("a.qcow2: is amended; a guest reads the same\n")
    ran = image.well("amend", "a.qcow2", "--lazy-refcounts", "off", "--json")
    assert json.loads(ran.out)["key_slots"] == []
    ran = image("amend", "a.qcow2")
    assert (ran.status, "it is not said what to change" in ran.err) == (2, True)
    ran = image("amend", "a.qcow2", "--refcount-bits", "5", "--compat", "0.10")
    assert (ran.status, "one of 1, 2, 4" in ran.err, "0.10 has 16" in ran.err) == (2, True, True)


def test_a_data_file(image: Command, tmp_path: Path) -> None:
    image.well("create", "a.qcow2", "1MiB", "--data-file", "a.data", "--data-file-raw")
    assert f"its content is in {tmp_path}/a.data\n" in image.well("info", "a.qcow2").out
    image.well("convert", "a.qcow2", "b.qcow2", "--data-file", "b.data")
    Path("b.data").rename("c.data")
    assert image("check", "b.qcow2").status == 1
    told = json.loads(image.well("amend", "b.qcow2", "--data-file=c.data", "--json").out)
    assert told["data_file"] == f"{tmp_path}/c.data"
    ran = image("create", "d.qcow2", "1MiB", "--data-file", "a.data")
    assert (ran.status, "it exists already" in ran.err) == (2, True)
    assert not Path("d.qcow2").exists()


@pytest.mark.bound(60)
def test_keys(image: Command, encrypted: Path) -> None:
    for name in ("one", "two"):
        Path(name).write_text(f"secret {name}")
    Path("plain").write_bytes(bytes(512))
    assert image.well("key", "list", "plain").out == "plain is not encrypted\n"
    shutil.copy(encrypted, "a.qcow2")
    opened = ("a.qcow2", "--secret-file", "one")
    assert json.loads(image.well("key", "list", "a.qcow2", "--json").out) == [0]
    for words in ([], ["--slot", "3", "--old-secret-file", "two"]):
        ran = image("key", "remove", *opened, *words)
        assert (ran.status, "--old-secret-file or --slot" in ran.err) == (2, True)
    for words in (["remove", *opened, "--slot", "0"], ["add", *opened, "--slot=8"]):
        new = ["--new-secret-file", "two"] if words[0] == "add" else []
        ran = image("key", *words, *new)
        assert (ran.status, "only active" in ran.err or "0 to 7" in ran.err) in (
            (1, True),
            (2, True),
        )
    ran = image("key", "change", "a.qcow2", "--secret-file", "-", "--new-secret-file", "-")
    assert (ran.status, "only one secret can come from stdin" in ran.err) == (2, True)
    ran = image.well("key", "change", *opened, "--new-secret-file", "two", "--iter-time", "10")
    assert ran.err.endswith("opens it, the old one no more\nslots 1 of 8 taken\n")
    ran = image("map", *opened)
    assert (ran.status, "Invalid password" in ran.err) == (1, True)
    assert image.well("key", "list", "a.qcow2").out == "slots 1 of 8 taken\n"


def test_a_strangers_image(image: Command, tmp_path: Path) -> None:
    image.well("create", "b.qcow2", "1MiB")
    image.well("overlay", "a.qcow2", "b.qcow2")
    for words in (
        ["convert", "a.qcow2", "new"],
        ["overlay", "new", "a.qcow2"],
        ["check", "a.qcow2"],
        ["resize", "a.qcow2", "+1MiB"],
        ["compare", "a.qcow2", "b.qcow2"],
        ["map", "a.qcow2"],
        ["measure", "a.qcow2"],
        ["rebase", "a.qcow2", "--no-base"],
        ["commit", "a.qcow2"],
    ):
        ran = image(*words, "--allow", "/srv", "--allow", "/usr")
        assert ran.status == 1
        assert f"outside the allowed folders. Cure: if you trust the image, allow '{tmp_path}'" in (
            ran.err
        ), words
        assert not Path("new").exists()
    image.well("convert", "a.qcow2", "new", "--allow", ".")


def test_secrets(image: Command, tmp_path: Path) -> None:
    """None of these comes as far as making an image, which takes seconds."""
    Path("empty").touch()
    Path("long").write_bytes(b"x" * 5000)
    Path("binary").write_bytes(b"\xff")
    for name, words in (
        ("empty", "--secret-file: empty is empty"),
        ("long", "--secret-file: long is longer than 4096 bytes"),
        ("none", "--secret-file: none cannot be read: No such file or directory"),
        ("binary", "secret: the secret is not UTF-8"),
    ):
        ran = image("create", "a.qcow2", "1MiB", "--secret-file", name)
        assert ran.status == 2
        assert words in ran.err
    reader, writer = os.pipe()
    os.write(writer, b"secret")
    os.close(writer)
    ran = image("create", "a.raw", "1MiB", "--format=raw", f"--secret-file=/dev/fd/{reader}")
    os.close(reader)
    assert (ran.status, "raw images are not encrypted" in ran.err) == (2, True)
    content = bytearray(qcow2(tmp_path / "e.qcow2", size=1 << 20).read_bytes())
    content[35] = 2
    Path("e.qcow2").write_bytes(content)
    assert not Path("a.qcow2").exists()
