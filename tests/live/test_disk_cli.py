"""Snapshots and disks of a farm's machine at the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.live.in_process import Command, Ran
from tests.live.kept import Places, kill
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

FARM = """
schema = 1
[machines.store]
qemu = "{qemu}"
accel = "tcg"
memory = "{memory}"
disks = [
  {{ file = "{{name}}.qcow2", format = "qcow2", make = "64MiB" }},
  {{ interface = "cdrom", format = "raw", id = "cd0" }},
]
"""


class Shell:
    def __init__(self, folder: Path, command: Command) -> None:
        self.folder = folder
        self.command = command

    def run(self, *words: str, status: int = 0) -> str:
        done = self._done(words, status)
        return done.out + done.err

    def up(self, *words: str) -> str:
        done = self.command.apart("up", "farm.toml", *words)
        assert done.status == 0, done.err
        return done.out + done.err

    def _done(self, words: tuple[str, ...], status: int = 0) -> Ran:
        done = self.command(*words)
        assert done.status == status, (words, done.out, done.err)
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self._done((*words, "--json")).out)

    def inspected(self, name: str) -> Any:
        return json.loads(self._done(("inspect", name)).out)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.qcow2"))


@pytest.fixture
def shell(
    tmp_path: Path,
    qemu: str,
    places: Places,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "farm.toml").write_text(FARM.format(qemu=qemu, memory="32MiB"))
    monkeypatch.chdir(folder)
    return Shell(folder, Command(capfd))


def test_disks_at_the_shell(shell: Shell, places: Places, qemu: str) -> None:
    shell.up()
    assert shell.json("snapshot", "list", "store") == {"snapshots": [], "current": None}
    assert "snapshot one of disk0" in shell.run("snapshot", "take", "store", "one")
    shell.run("snapshot", "take", "store", "two", "--description", "before the upgrade")
    listed = shell.run("snapshot", "list", "store")
    assert "  two *" in listed and "before the upgrade" in listed
    told = shell.json("snapshot", "list", "store")
    assert [it["parent"] for it in told["snapshots"]] == [None, "one"]
    assert shell.names() == ["store.one.qcow2", "store.qcow2", "store.two.qcow2"]

    # A daemon that is killed finds what its machines have become, and a new spec goes on with it.
    kill(int((places.state / "lab" / "lock").read_text()))
    (shell.folder / "farm.toml").write_text(FARM.format(qemu=qemu, memory="48MiB"))
    assert "was restarted" in shell.up("--restart", "--grace", "0")
    (machine,) = shell.inspected("store")
    assert machine["spec"]["disks"][0]["file"] == str(shell.folder / "store.two.qcow2")
    assert [it["name"] for it in machine["spec"]["snapshots"]] == ["one", "two"]

    said = shell.run("snapshot", "revert", "store", "one", status=2)
    assert "it is up" in said
    said = shell.run("snapshot", "revert", "store", "one", "--stop", "--grace", "0")
    assert "store.two.qcow2, which nothing uses any more" in said
    assert "one *" in shell.run("snapshot", "list", "store")
    assert "two" in shell.run("snapshot", "delete", "store", "one", status=2), "it needs one"
    shell.run("snapshot", "delete", "store", "two")
    shell.run("snapshot", "delete", "store", "one", "--speed", "1GiB")
    assert shell.names() == ["store.qcow2", "store.two.qcow2"]
    assert "moved.qcow2" in shell.run("disk", "move", "store", "disk0", "moved.qcow2")
    assert "has 96MiB" in shell.run("disk", "resize", "store", "disk0", "96MiB")
    assert "bps=10MiB, also" in shell.run("disk", "limit", "store", "disk0", "bps=10MiB")
    assert "iops_max: is of use only" in shell.run(
        "disk", "limit", "store", "disk0", "iops_max=5", status=2
    )
    (layer,) = shell.json("disk", "list", "store")["disk0"]
    assert layer["file"] == str(shell.folder / "moved.qcow2") and layer["size"] == 96 << 20
    (shell.folder / "a.iso").write_bytes(bytes(4096))
    assert shell.json("disk", "list", "store")["cd0"] == []
    assert "a.iso in it" in shell.run("disk", "insert", "store", "cd0", "a.iso")
    assert "a.iso" in shell.run("disk", "list", "store")
    shell.run("disk", "eject", "store", "cd0", "--force")
    assert "(empty)" in shell.run("disk", "list", "store")
    assert "no tray" in shell.run("disk", "eject", "store", "disk0", status=2)
    shell.run("snapshot", "take", "store", "ram", "--ram")
    shell.run("snapshot", "load", "store", "ram")
    shell.run("snapshot", "take", "store", "three")
    assert "moved.qcow2" in shell.run("disk", "list", "store")
    shell.run("disk", "flatten", "store", "disk0")
    said = shell.run("snapshot", "take", "store", "filed", "--ram-file")
    assert "its guest stood still for" in said
    assert "disks, RAM in a file" in shell.run("snapshot", "list", "store")
    said = shell.run("snapshot", "load", "store", "filed", status=2)
    assert "stop the machine and revert it" in said
    shell.run("snapshot", "revert", "store", "filed", "--stop", "--grace", "0")
    shell.run("snapshot", "revert", "store", "filed", "--stop", "--grace", "0", "--disks-only")
    assert (shell.folder / "store.filed.ram").exists()

    said = shell.run("snapshot", "take", "store", "a/b", status=2)
    assert "'a/b' is no name" in said
    assert "'' is no name" in shell.run("snapshot", "delete", "store", "", status=2)
    assert "there is no snapshot 'nix'" in shell.run("snapshot", "delete", "store", "nix", status=2)
    assert "no disk 'nix' (there are: disk0, cd0)" in shell.run(
        "disk", "resize", "store", "nix", "1GiB", status=2
    )
    assert "no snapshot 'nix' (there are: " in shell.run(
        "snapshot", "delete", "store", "nix", status=2
    )
    assert "it has no disk 'disk7'" in shell.run(
        "disk", "resize", "store", "disk7", "1GiB", status=2
    )
    said = shell.run("disk", "resize", "store", "disk0", "2049TiB", status=1)
    assert "Cure: ask for less: a qcow2 whose clusters have 64KiB holds 2PiB at most" in said
    said = shell.run("disk", "insert", "store", "cd0", "/dev/null", status=2)
    assert "'/dev/null' is neither a file nor a block device (name an image)" in said
    assert "a guest would lose" in shell.run("disk", "resize", "store", "disk0", "1MiB", status=2)
    for place in ("moved.qcow2", "no/moved.qcow2"):
        assert "Cure: " in shell.run("disk", "move", "store", "disk0", place, status=2)
    shell.run("stop", "store", "--grace", "0")
    shell.run("snapshot", "take", "store", "down")
    assert "down *" in shell.run("snapshot", "list", "store")
    assert "store.down.qcow2" in shell.run("disk", "list", "store")
    shell.run("snapshot", "rename", "store", "down", "rest")
    shell.run("snapshot", "delete", "store", "rest")
    assert shell.json("disk", "limit", "store", "disk0")["limits"]["bps"] == 0
    shell.run("down", "--grace", "0", "--delete-disks", "--yes")
    assert places.qemus() == []
    left = [f"store.{name}qcow2" for name in ("filed-1.", "filed.", "", "two.")]
    assert list(shell.folder.glob("*.ram")) == []
    assert shell.names() == left, "where it was before it was moved, and reverted"
