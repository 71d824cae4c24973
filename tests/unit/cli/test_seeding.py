"""Keys and a host name for the seed of `qmpkit run --user`."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.cli.seeding import host_name, public_keys


def test_all_keys_of_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".ssh"
    folder.mkdir()
    (folder / "id_b.pub").write_text("ssh-rsa B b@x\n")
    (folder / "id_a.pub").write_text("# mine\n\nssh-ed25519 A a@x\n ssh-ed25519 C\n")
    (folder / "id_a").write_text("PRIVATE KEY")
    assert public_keys([]) == ("ssh-ed25519 A a@x", "ssh-ed25519 C", "ssh-rsa B b@x")
    assert public_keys([folder / "id_b.pub"]) == ("ssh-rsa B b@x",)


@pytest.mark.parametrize(
    ("machine", "host"),
    [
        ("web", "web"),
        ("debian-12.generic", "debian-12-generic"),
        ("my disk, 2", "my-disk-2"),
        ("ümläut", "ml-ut"),
        ("日本", "vm"),
        ("x" * 62 + "--y", "x" * 62),
    ],
)
def test_a_host_name(machine: str, host: str) -> None:
    assert host_name(machine) == host
