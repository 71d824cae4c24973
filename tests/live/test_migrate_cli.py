"""`qmpkit migrate` on a farm's machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.testing import guests
from tests.conftest import binaries
from tests.live.in_process import Command
from tests.live.kept import Places
from tests.live.migrating import ODD
from tests.live.test_disk_cli import Shell
from tests.sizes import LONG, QEMU_VERSIONS

pytestmark = pytest.mark.live

FARM = """
schema = 1
[machines.mover]
profile = "kvm-tiny"
qemu = "{qemu}"
accel = "tcg"
machine = "pc-q35-7.2"
memory = "{memory}"
cpu = {{ model = "Nehalem" }}
disks = [{{ file = "{{name}}.qcow2", format = "qcow2", make = "16MiB" }}]
"""


def test_at_the_shell(
    tmp_path: Path,
    places: Places,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guests.build_kvm_tiny()
    old, new = (binaries()[version] for version in QEMU_VERSIONS)
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "farm.toml").write_text(FARM.format(qemu=old, memory=ODD))
    monkeypatch.chdir(folder)
    shell = Shell(folder, Command(capfd))
    shell.up()
    try:
        assert shell.run("migrate", "mover", "--check", "--qemu", new) == "mover can migrate\n"
        said = shell.run("migrate", "mover", "--check", "--qemu", "/no/qemu", status=2)
        assert "mover: qemu: '/no/qemu' does not exist" in said
        for more in (["--check"], []):
            said = shell.run("migrate", "mover", "--qemu", "/bin/ls", *more, status=2)
            assert "qemu: '/bin/ls' is no QEMU: " in said and "did not start" not in said
        took = shell.json("migrate", "mover", "--qemu", new, "--policy", "fast")
        assert took["machine"] == "mover" and 0 < took["downtime"] < took["seconds"]
        (found,) = shell.inspected("mover")
        assert found["pid"] == took["pid"] and found["spec"]["qemu"] == new
        (folder / "new").mkdir()
        shell.run("migrate", "mover", "--disks", "new")
        (found,) = shell.inspected("mover")
        assert found["spec"]["disks"][0]["file"] == str(folder / "new" / "mover.qcow2")
        said = shell.run("migrate", "mover", "--disks", "new", "--check", status=2)
        assert "disks.disk0" in said and "mover.qcow2 exists already" in said
        plan = shell.json("plan", "farm.toml")
        assert plan["is_empty"], plan
        for more in (["--check"], []):
            said = shell.run("migrate", "mover", "--channels", "2", *more, status=2)
            assert "channels: several need connections" in said and "(--way)" in said
            way = ["--way", "unix", "--channels", "2", "--policy", "postcopy"]
            said = shell.run("migrate", "mover", *way, *more, status=2)
            assert "leave --channels out" in said
            long = "x" * 300
            said = shell.run("migrate", "mover", "--disks", long, *more, status=2)
            assert f"there is no directory {folder / long}" in said
        _what_is_named_badly(shell, folder)
        if LONG:
            _more(shell, folder)
        _to_another_farm(shell)
    finally:
        shell.run("down", "--grace", "0", "--farm", "lab")


def _what_is_named_badly(shell: Shell, folder: Path) -> None:
    """Is a mistake in the command line, and nothing that this host lacks."""
    for name in ("ca-cert", "server-cert", "server-key", "client-cert", "client-key"):
        (folder / f"{name}.pem").write_text("none")
    for words, said in (
        (["--qemu", "/no/qemu"], "qemu: '/no/qemu' does not exist"),
        (["--qemu", "qemu-nowhere"], "qemu: qemu-nowhere is not on PATH"),
        (["--way", "file", "--file", "farm.toml"], "farm.toml' cannot be made: File exists"),
        (["--way", "file", "--file", "/no/file"], "'/no/file' cannot be made: No such file"),
        (["--bandwidth", "9999999TiB"], "max_bandwidth: 9999999TiB a second is more than"),
        (["--to", "tls://host:1", "--tls", str(folder)], "tls: the certificates in"),
    ):
        assert said in shell.run("migrate", "mover", *words, status=2)


def _to_another_farm(shell: Shell) -> None:
    started = shell.command.apart("serve", "--farm", "other", "--detach")
    assert started.status == 0, started.err
    move = ("migrate", "mover", "--farm", "lab", "--to")
    assert shell.run(*move, "other", "--check") == "mover can migrate\n"
    for more in (["--check"], []):
        said = shell.run(*move, "nowhere", *more, status=2)
        assert "to: nowhere: farm 'nowhere' has no daemon that runs" in said
    assert "in clear" in shell.run(*move, "tls://host:1", status=2)
    said = shell.run("receive", "--listen", "here", "--tls", "/no/folder", status=2)
    assert "is not ADDRESS:PORT" in said and "ca-cert.pem is not there" in said
    assert "was not moving" in shell.run("migrate", "mover", "--farm", "lab", "--settle", status=2)
    said = shell.run(*move, "other")
    assert said.startswith("mover has migrated to other; its guest stood still for ")
    assert shell.json("ps", "--farm", "lab") == []
    shell.run("wait", "mover", "--farm", "other", "--for", "running")  # its task finds it first
    (found,) = shell.json("ps", "--farm", "other")
    assert (found["name"], found["state"]) == ("mover", "running")
    shell.run("stop", "mover", "--grace", "0", "--farm", "other")
    shell.run("rm", "mover", "--farm", "other")


def _more(shell: Shell, folder: Path) -> None:
    took = shell.json("migrate", "mover", "--policy", "postcopy", "--passes", "0")
    assert took["machine"] == "mover" and 0 < took["downtime"] < took["seconds"]
    said = shell.run("migrate", "mover", "--passes", "1", "--deadline", "2", status=2)
    assert "deadline: the policy 'live' has none" in said and "passes: the policy" in said
    assert shell.json("migrate", "mover", "--check") == {"machine": "mover", "faults": []}
    image = folder / "new" / "mover.qcow2"
    image.rename(folder / "gone")
    assert "mover.qcow2' does not exist" in shell.run("migrate", "mover", status=2)
    (folder / "gone").rename(image)
    way = ["--way", "unix", "--channels", "2", "--compression", "zlib", "--bandwidth", "1GiB"]
    said = shell.run("migrate", "mover", *way, "--downtime", "0.2", "--max-downtime", "1")
    assert said.startswith("mover has migrated to process ") and "stood still for 0." in said
    assert "nobody" in shell.run("migrate", "nobody", status=2)
