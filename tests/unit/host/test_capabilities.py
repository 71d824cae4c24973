"""Remembering what a binary can do, and finding it at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpkit.errors import BinaryMissing
from qmpkit.host import binary
from qmpkit.host.binary import (
    find_binary,
    has_option,
    known_capabilities,
    machine_type,
)
from qmpkit.host.capabilities import (
    Capabilities,
    MachineType,
    Stamp,
    load,
    load_schema,
    store,
    store_schema,
)
from qmpkit.qmp.schema import Schema

KNOWN = Capabilities(
    version=(7, 2, 22),
    package="Debian",
    arch="x86_64",
    accelerators=("kvm", "tcg"),
    machines=(
        MachineType("pc-q35-7.2", "q35", max_cpus=288, default_cpu="qemu64-x86_64-cpu"),
        MachineType("pc-i440fx-7.2", "pc", default=True),
        MachineType("microvm"),
    ),
    cpu_models=("max", "qemu64"),
    commands=frozenset({"query-status", "quit"}),
    run_with_user=False,
    sandbox=False,
)


@pytest.fixture
def stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stamp:
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(binary, "_remembered", {})
    return Stamp.of(program(tmp_path, "qemu-system-x86_64"))


def program(folder: Path, name: str, mode: int = 0o755) -> Path:
    path = folder / name
    path.write_text("#!/bin/false\n")
    path.chmod(mode)
    return path


def test_round_trip_through_the_disk(stamp: Stamp) -> None:
    assert load(stamp) is None
    store(stamp, KNOWN)
    assert load(stamp) == KNOWN
    assert [entry.name for entry in stamp.entry.parent.iterdir()] == [stamp.entry.name]


def test_memory_comes_before_the_disk(stamp: Stamp) -> None:
    store(stamp, KNOWN)
    assert known_capabilities(stamp) == KNOWN
    stamp.entry.unlink()
    assert known_capabilities(stamp) == KNOWN


def test_the_schema_lies_beside(stamp: Stamp) -> None:
    assert load_schema(stamp) is None
    store_schema(stamp, Schema([{"name": "quit", "meta-type": "command", "arg-type": "0"}]))
    found = load_schema(stamp)
    assert found is not None
    assert found.commands == {"quit"}
    assert load(stamp) is None, "one does not stand for the other"
    assert stamp.schema_entry.parent == stamp.entry.parent


@pytest.mark.parametrize("content", [b"", b"[]", b'{"schema": 2}', b"\xff"])
def test_a_spoilt_schema_is_ignored(stamp: Stamp, content: bytes) -> None:
    store_schema(stamp, Schema([]))
    stamp.schema_entry.write_bytes(content)
    assert load_schema(stamp) is None


@pytest.mark.parametrize("field", ["inode", "size", "mtime_ns"])
def test_another_file_under_the_same_path(stamp: Stamp, field: str) -> None:
    store(stamp, KNOWN)
    changes: dict[str, Any] = {field: 1}
    assert load(attrs.evolve(stamp, **changes)) is None


def test_an_upgrade_in_place_is_seen(stamp: Stamp) -> None:
    store(stamp, KNOWN)
    Path(stamp.path).write_text("another program")
    assert load(Stamp.of(Path(stamp.path))) is None


def _spoil(entry: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**entry, **changes}).encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: b"",
        lambda entry: b"\x00\xff",
        lambda entry: b"[]",
        lambda entry: b"[" * 100_000,
        lambda entry: json.dumps(entry).encode()[:-40],
        lambda entry: _spoil(entry, schema=0),
        lambda entry: _spoil(entry, capabilities={}),
        lambda entry: _spoil(entry, capabilities={**entry["capabilities"], "machines": [{}]}),
        lambda entry: _spoil(entry, capabilities={**entry["capabilities"], "commands": "quit"}),
        lambda entry: _spoil(entry, capabilities={**entry["capabilities"], "version": [7]}),
    ],
)
def test_a_spoilt_entry_is_ignored_and_made_again(stamp: Stamp, spoil: Any) -> None:
    store(stamp, KNOWN)
    stamp.entry.write_bytes(spoil(json.loads(stamp.entry.read_bytes())))
    assert load(stamp) is None
    store(stamp, KNOWN)
    assert load(stamp) == KNOWN


def test_a_cache_that_cannot_be_written_is_no_fault(
    stamp: Stamp, caplog: pytest.LogCaptureFixture
) -> None:
    stamp.entry.parent.parent.write_text("a file where the directory should be")
    with caplog.at_level("INFO", "qmpkit.host"):
        store(stamp, KNOWN)
    assert "cannot write the cache entry" in caplog.text
    assert load(stamp) is None


def test_machine_by_alias_and_by_name() -> None:
    assert KNOWN.machine("q35") is KNOWN.machine("pc-q35-7.2") is KNOWN.machines[0]
    microvm = KNOWN.machine("microvm")
    assert microvm is not None
    assert microvm.name == "microvm"
    assert KNOWN.machine("q36") is None
    assert KNOWN.machine("") is None
    assert KNOWN.similar_machines("q36") == ["q35"]


def test_a_machine_without_alias_or_default() -> None:
    line = {"name": "virt-7.2", "cpu-max": 512, "deprecated": False, "alias": "virt"}
    assert machine_type(line) == MachineType("virt-7.2", "virt", max_cpus=512)


def test_options() -> None:
    old = [{"option": "sandbox", "parameters": [{"name": "enable"}]}]
    middle = [{"option": "run-with", "parameters": [{"name": "async-teardown"}]}]
    new = [{"option": "run-with", "parameters": [{"name": "chroot"}, {"name": "user"}]}]
    assert [has_option(found, "run-with", "user") for found in (old, middle, new)] == [
        False,
        False,
        True,
    ]


def test_found_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path, "qemu-system-x86_64")
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")
    assert find_binary(None, "x86_64") == path
    assert find_binary("qemu-system-x86_64", "aarch64") == path


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path, "qemu")
    monkeypatch.chdir(tmp_path)
    assert find_binary("./qemu", "x86_64") == path


@pytest.mark.parametrize(
    ("arch", "package"),
    [
        ("x86_64", "qemu-system-x86"),
        ("aarch64", "qemu-system-arm"),
        ("riscv64", "qemu-system-misc"),
    ],
)
def test_missing_names_the_package(
    monkeypatch: pytest.MonkeyPatch, arch: str, package: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BinaryMissing) as caught:
        find_binary(None, arch)
    assert str(caught.value) == (
        f"qemu-system-{arch} is not on PATH. Cure: sudo apt install {package}"
    )


def test_a_named_binary_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BinaryMissing, match="absent' does not exist"):
        find_binary(str(tmp_path / "absent"), "x86_64")


def test_a_named_binary_that_cannot_be_executed(tmp_path: Path) -> None:
    path = program(tmp_path, "qemu", mode=0o644)
    with pytest.raises(BinaryMissing, match="is not an executable file"):
        find_binary(os.fspath(path), "x86_64")
