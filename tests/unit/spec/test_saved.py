"""The manifest of a saved machine, and the record of a lab's checkpoint, as text and back."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from qmpkit import Disk, MachineSpec, SpecInvalid
from qmpkit.spec.checkpoints import Checkpoint, checkpoint_from_json, checkpoint_to_json
from qmpkit.spec.saved import (
    FileSum,
    SavedLayer,
    SavedMachine,
    saved_from_json,
    saved_to_json,
)

SUM = FileSum(length=3, checksum="xxh3_128:" + "a" * 32, sampled="xxh3_128:" + "b" * 32)
SAVED = SavedMachine(
    spec=MachineSpec(
        name="web",
        machine="pc-q35-7.2",
        disks=[Disk("/a.qcow2", format="qcow2"), Disk("disk1.qcow2", format="qcow2")],
    ),
    time=1e9,
    qmpkit="0.1.0",
    qemu="7.2.22",
    accel="tcg",
    ram="packed",
    cpu_flags=("sse",),
    files={"memory": SUM, "disk1.qcow2": SUM},
    needs={"/boot/vmlinuz": SUM},
    disks={"disk0": (SavedLayer(file="/a.qcow2", inode=7, length=9, mtime_ns=11),)},
    copies={"disk1": "disk1.qcow2"},
    spent=2e9,
)


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(saved_to_json(SAVED)) | changes)


def test_a_manifest_comes_back_as_it_was() -> None:
    assert saved_from_json(saved_to_json(SAVED), "m") == SAVED
    bare = attrs.evolve(SAVED, spent=None, needs={}, cpu_flags=())
    assert saved_from_json(saved_to_json(bare).encode(), "m") == bare
    assert bare.size == 6 and bare.name == "web"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ""),
        ("[" * 100_000, ""),
        ("7", ""),
        ("{}", ""),
        (changed(schema=True), ""),
        (changed(schema=2), "schema"),
        (changed(spec=[]), "spec"),
        (changed(spec={"schema": 9}), "spec.schema"),
        (changed(spec={"schema": 1, "memory": "x"}), "spec.memory.size"),
        (changed(time="now"), "time"),
        (changed(ram="zip"), "ram"),
        (changed(files={"memory": {"length": 1}}), "files.memory.checksum"),
        (changed(copies={"disk1": "other"}), "files"),
        (changed(disks={}), "disks"),
    ],
)
def test_what_is_none_is_refused_with_its_place(text: str, path: str) -> None:
    with pytest.raises(SpecInvalid) as told:
        saved_from_json(text, "m")
    assert path in [fault.path for fault in told.value.faults]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "manifest.json"])
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    plain = json.loads(saved_to_json(SAVED))
    plain["files"][name] = plain["files"]["memory"]
    with pytest.raises(SpecInvalid, match="is no name of a file of it"):
        saved_from_json(json.dumps(plain), "m")


@pytest.mark.parametrize("checksum", ["", "md5:00", "xxh3_128:" + "g" * 32])
def test_a_sum_that_is_none_is_refused(checksum: str) -> None:
    plain = json.loads(saved_to_json(SAVED))
    plain["needs"]["/boot/vmlinuz"]["checksum"] = checksum
    with pytest.raises(SpecInvalid, match="is not xxh3_128"):
        saved_from_json(json.dumps(plain), "m")


def test_a_checkpoint_comes_back_as_it_was() -> None:
    point = Checkpoint(name="now", machines=("a", "b"), time=1e9, pause=0.5, whole=False)
    assert checkpoint_from_json(checkpoint_to_json(point).encode(), "c") == point


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "this is not JSON"),
        ("[]", "this is no checkpoint"),
        ('{"schema": 2}', "2 is newer than the 1"),
        ('{"schema": 1}', "name: is missing"),
        ('{"schema": 1, "name": "a", "machines": "b"}', "machines"),
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str, what: str) -> None:
    with pytest.raises(SpecInvalid, match=what):
        checkpoint_from_json(text.encode(), "c")
