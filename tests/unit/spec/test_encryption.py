"""Encrypted disks as data, and what QEMU is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit import BaseKey, Disk, Luks, MachineSpec, SpecInvalid
from qmpkit.spec.block import blockdevs_of
from qmpkit.spec.check import validate
from qmpkit.spec.data import spec_from_toml, spec_to_toml
from qmpkit.spec.devices import objects
from qmpkit.spec.encryption import BaseImage, secret_problem
from qmpkit.spec.profile import load_profile

KEYS = Luks("web.key", bases=[BaseKey("base.qcow2", "base.key")])


def test_the_secrets_are_objects_that_name_files() -> None:
    disk = Disk("web.qcow2", format="qcow2", luks=KEYS)
    found = [it for it in objects(MachineSpec(disks=[disk])) if it["qom-type"] == "secret"]
    assert found == [
        {"qom-type": "secret", "id": "qk-disk0-key0", "file": "web.key"},
        {"qom-type": "secret", "id": "qk-disk0-key1", "file": "base.key"},
    ]


def test_the_nodes_name_the_secrets() -> None:
    (raw,) = MachineSpec(disks=[Disk("a.luks", format="luks", luks="a.key")]).disks
    _, upper = blockdevs_of(raw)
    assert upper["driver"] == "luks" and upper["key-secret"] == "qk-disk0-key0"
    (disk,) = MachineSpec(disks=[Disk("web.qcow2", format="qcow2", luks=KEYS)]).disks
    plain = BaseImage("plain.raw", "raw", "file", None)
    _, upper = blockdevs_of(disk, bases=[plain])
    assert upper["encrypt"] == {"format": "luks", "key-secret": "qk-disk0-key0"}
    assert "backing" not in upper, "QEMU opens those by itself"
    _, upper = blockdevs_of(disk, bases=[BaseImage("base.qcow2", "qcow2", "file", 1), plain])
    assert upper["backing"] == {
        "driver": "qcow2",
        "read-only": True,
        "file": {"driver": "file", "filename": "base.qcow2"},
        "encrypt": {"format": "luks", "key-secret": "qk-disk0-key1"},
        "backing": {
            "driver": "raw",
            "read-only": True,
            "file": {"driver": "file", "filename": "plain.raw"},
        },
    }


@pytest.mark.parametrize(
    ("disk", "fault"),
    [
        (Disk("a", format="luks"), "disks[0].luks: a luks image needs a secret"),
        (Disk("a", format="raw", luks="k"), "disks[0].format: a raw image holds no encryption"),
        (Disk("a", format="qcow2", luks=""), "disks[0].luks.key_file: the path is empty"),
        (Disk("a", format="qcow2", luks=Luks("k", iter_time=0)), "disks[0].luks.iter_time: is to"),
        (
            Disk("a", format="qcow2", luks=Luks("k", bases=[BaseKey("b", "")])),
            "disks[0].luks.bases[0].key_file: the path is empty",
        ),
        (
            Disk("a", format="qcow2", luks=Luks("k", bases=[BaseKey("b", "c"), BaseKey("b", "d")])),
            "disks[0].luks.bases[1].file: 'b' is named twice",
        ),
    ],
)
def test_what_contradicts_itself(disk: Disk, fault: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        validate(MachineSpec(disks=[disk]))
    (found,) = caught.value.faults
    assert str(found).startswith(fault)


def test_written_and_read_back(tmp_path: Path) -> None:
    spec = MachineSpec(disks=[Disk("web.qcow2", format="qcow2", luks=KEYS)])
    assert spec_from_toml(spec_to_toml(spec)) == spec
    file = tmp_path / "web.toml"
    file.write_text(
        'schema = 1\nname = "web"\n'
        '[[disks]]\nfile = "a.qcow2"\nformat = "qcow2"\nluks = "a.key"\n'
        '[[disks]]\nfile = "b.qcow2"\nformat = "qcow2"\n'
        '[disks.luks]\nkey_file = "b.key"\nbases = [{ file = "c.qcow2", key_file = "c.key" }]\n'
    )
    one, two = load_profile(file).disks
    assert one.luks == Luks(tmp_path / "a.key"), "a path counts from the file it is written in"
    assert two.luks == Luks(
        tmp_path / "b.key", bases=[BaseKey(tmp_path / "c.qcow2", tmp_path / "c.key")]
    )
    with pytest.raises(SpecInvalid, match="cannot be 5"):
        Disk("a", format="qcow2", luks=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("secret", "problem"),
    [(b"", "empty"), (b"a\0", "NUL"), (b"\xff", "UTF-8"), (b"a" * 4097, "longer"), (b"a\n", "")],
)
def test_secrets_that_qemu_would_not_take(secret: bytes, problem: str) -> None:
    assert problem in secret_problem(secret)
    assert bool(problem) == bool(secret_problem(secret))
