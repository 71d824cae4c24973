"""What the README shows is true: its program runs, its file loads, its commands exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qmpkit
from qmpkit import Disk, Forward, Overlay, UserNic
from qmpkit.spec.check import faults_of
from qmpkit.spec.health import Health

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEvvZ2hlcmUgaXMgYSBrZXkgZm9yIHRlc3RpbmcgaXQ="
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_file_is_the_spec_beside_it(tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_text(blocks("toml")[0])
    spec = qmpkit.load_profile(tmp_path / "web.toml")
    assert (spec.name, spec.machine, str(spec.memory.size)) == ("web", "q35", str(1 << 30))
    base = Overlay(str(tmp_path / "debian.qcow2"), format="qcow2")
    assert spec.disks == (
        Disk(str(tmp_path / "web.qcow2"), format="qcow2", make=base, id=spec.disks[0].id),
    )
    nic = UserNic(forwards=[Forward(host=2222, guest=22)], id=spec.nics[0].id)
    assert spec.nics == (nic,)


def test_the_profile_of_resources_is_without_a_fault(tmp_path: Path) -> None:
    (text,) = (block for block in blocks("toml") if "[resources]" in block)
    (tmp_path / "fast.toml").write_text(text)
    spec = qmpkit.load_profile(tmp_path / "fast.toml")
    assert faults_of(spec) == ()
    assert (spec.cpu.pin, spec.numa[0].host_nodes, spec.resources.cpu_max) == ("auto", "0", 4.5)


def test_the_farm_is_what_is_said_of_it(tmp_path: Path) -> None:
    (farm_text,) = (block for block in blocks("toml") if "[machines.web]" in block)
    (tmp_path / "farm.toml").write_text(farm_text)
    (tmp_path / "me.pub").write_text(f"{KEY} me\n")
    farm = qmpkit.load_farm(tmp_path / "farm.toml")
    assert [machine.name for machine in farm.machines] == ["db", "web1", "web2", "web3"]
    db, web, *_ = farm.machines
    base = Overlay("/srv/images/debian.qcow2", format="qcow2")
    assert (web.spec.disks[0].file, web.spec.disks[0].make) == (
        f"{tmp_path}/disks/web1.qcow2",
        base,
    )
    assert (web.requires, web.restart.policy) == (("db",), "on-failure")
    assert web.health == Health(checks="tcp:80")
    assert db.seed is not None
    assert (db.seed.hostname, db.seed.user, db.seed.ssh_keys) == ("db", "me", (f"{KEY} me",))
    assert "10.1.0.2/24" in str(db.seed.network_config)


@pytest.mark.parametrize("code", blocks("python"))
def test_every_block_is_python(code: str) -> None:
    tree = ast.parse(f"async def block():\n{_indented(code)}")
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "qmpkit"
    }
    assert used <= set(qmpkit.__all__)


def _indented(code: str) -> str:
    return "".join(f"    {line}" for line in code.splitlines(keepends=True))


FRONTS = {
    "vm": qmpkit.VM,
    "vm.console": qmpkit.Console,
    "vm.agent": qmpkit.Agent,
    "vm.backups": qmpkit.Backups,
    "vm.disks": qmpkit.Disks,
    "vm.nics": qmpkit.Nics,
    "vm.snapshots": qmpkit.Snapshots,
    "vm.cpus": qmpkit.Cpus,
    "vm.memory": qmpkit.GuestMemory,
    "vm.devices": qmpkit.Devices,
    "vm.tune": qmpkit.Tune,
}


def methods() -> list[str]:
    """The methods in the table: `vm.console.expect` `send_line` are two of vm.console."""
    found = []
    for row in re.findall(r"^\|[^|`]+\| (`vm\..*) \|$", README, re.MULTILINE):
        words = re.findall(r"`([\w.]+)`", row)
        front = words[0].rpartition(".")[0]
        found += [f"{front}.{word.rpartition('.')[2]}" for word in words]
    return found


def test_what_is_imported_and_named_is_there() -> None:
    """In a process of its own: in this one somebody has imported all."""
    trees = [ast.parse(f"async def block():\n{_indented(code)}") for code in blocks("python")]
    lines = [
        ast.unparse(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    lines += re.findall(r"\b(qmpkit\.[\w.]*\w)\(", README)
    for line in ["import qmpkit", *dict.fromkeys(lines)]:
        code = f"import qmpkit\n{line}"
        done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
        assert done.returncode == 0, done.stderr.decode()


def test_the_table_of_methods_is_read() -> None:
    assert {"vm.pause", "vm.wait", "vm.console.send_line", "vm.agent.interfaces"} <= set(methods())


@pytest.mark.parametrize("method", methods())
def test_every_method_exists(method: str) -> None:
    front, _, name = method.rpartition(".")
    assert hasattr(FRONTS[front], name)


@pytest.mark.parametrize("script", re.findall(r"`(scripts/[\w/]+)", README))
def test_every_script_exists(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


def test_every_error_exists() -> None:
    section = README.split("## Errors")[1].split("## ")[0]
    for name in re.findall(r"`([A-Z]\w+)`", section):
        assert issubclass(getattr(qmpkit, name), qmpkit.QmpkitError)


@pytest.mark.live
@pytest.mark.bound(60)
def test_the_ten_lines_run() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("Linux 6.")
    assert lines[-2] == "State.PAUSED"
    assert lines[-1].startswith("the guest shut itself down after")


@pytest.mark.live
@pytest.mark.parametrize("word", ["images.converting(", "images.rebase("])
async def test_the_programs_about_images_run(
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = (block for block in blocks("python") if word in block)
    monkeypatch.chdir(tmp_path)
    if word == "images.converting(":
        await qmpkit.images.create("debian.qcow2", "1MiB", "qcow2")
    program: dict[str, Any] = {}
    exec(f"async def program():\n{_indented(code)}", program)
    await program["program"]()
    assert ("identical=True" in capsys.readouterr().out) is (word == "images.rebase(")
