"""The command lines of both virtiofsds, and where one is found."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from qmpkit.errors import BinaryMissing, HostLacks
from qmpkit.host.virtiofsd import Virtiofsd, find_virtiofsd
from qmpkit.spec.peripherals import Share
from tests.unit.host.trees import write

SHARE = Share(tag="work", path="/srv/a,b\\c")
OLD = Virtiofsd("/old", rust=False, readonly=False)
NEW = Virtiofsd("/new", rust=True, readonly=True)

ROOT, CHROOT, NOBODY = "000001ffffffffff", f"{1 << 18:016x}", "0" * 16


def able(root: Path, capabilities: str) -> Path:
    write(root, "proc/self/status", f"CapEff:\t{capabilities}\n")
    return root


def test_the_one_in_c(tmp_path: Path) -> None:
    argv = OLD.argv(SHARE, 3, able(tmp_path, ROOT))
    assert argv[:3] == ["/old", "--fd=3", "-f"]
    assert argv[3::2] == ["-o"] * 3
    assert argv[4::2] == ["source=/srv/a\\,b\\\\c", "sandbox=namespace", "log_level=warn"]
    assert "sandbox=chroot" in OLD.argv(SHARE, 3, able(tmp_path, CHROOT))
    with pytest.raises(HostLacks, match="only as root"):
        OLD.argv(SHARE, 3, able(tmp_path, NOBODY))
    with pytest.raises(HostLacks, match="read-only"):
        OLD.argv(attrs.evolve(SHARE, read_only=True), 3, able(tmp_path, ROOT))


def test_the_one_in_rust(tmp_path: Path) -> None:
    argv = NEW.argv(SHARE, 3, able(tmp_path, NOBODY))
    words = ["--shared-dir=/srv/a,b\\c", "--sandbox=namespace", "--log-level=warn"]
    assert argv == ["/new", "--fd=3", *words]
    assert "--sandbox=chroot" in NEW.argv(SHARE, 3, able(tmp_path, CHROOT))
    assert NEW.argv(attrs.evolve(SHARE, read_only=True), 3, tmp_path)[-1] == "--readonly"
    with pytest.raises(HostLacks, match="read-only"):
        attrs.evolve(NEW, readonly=False).argv(attrs.evolve(SHARE, read_only=True), 3, tmp_path)


def test_where_its_package_says_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(BinaryMissing, match="virtiofsd is not installed"):
        find_virtiofsd(tmp_path)
    write(tmp_path, "usr/lib/qemu/virtiofsd", "")
    (tmp_path / "usr/lib/qemu/virtiofsd").chmod(0o755)
    assert find_virtiofsd(tmp_path) == str(tmp_path / "usr/lib/qemu/virtiofsd")
    write(tmp_path, "opt/virtiofsd", "")
    told = {"type": "fs", "binary": "/opt/virtiofsd"}
    folder = "usr/share/qemu/vhost-user"
    write(tmp_path, f"{folder}/10-gpu.json", json.dumps({"type": "gpu", "binary": "/opt/gpu"}))
    write(tmp_path, f"{folder}/20-broken.json", "{")
    write(tmp_path, f"{folder}/50-fs.json", json.dumps(told))
    assert find_virtiofsd(tmp_path) != "/opt/virtiofsd", "it cannot be run"
    (tmp_path / "opt/virtiofsd").chmod(0o755)
    assert find_virtiofsd(tmp_path) == "/opt/virtiofsd"
