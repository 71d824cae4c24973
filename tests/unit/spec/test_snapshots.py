"""The names of snapshots, of their layers' files and nodes."""

from __future__ import annotations

import pytest

from qmpkit import MachineSpec, Snapshot, SpecInvalid
from qmpkit.spec.data import spec_from_toml, spec_to_toml
from qmpkit.spec.names import NODE_NAME_LIMIT
from qmpkit.spec.snapshots import (
    free_tag,
    layer_file,
    layer_node,
    snapshot_name_problem,
    tag_of,
)


@pytest.mark.parametrize("name", ["a", "before-upgrade", "2026.11_x", "x" * 48])
def test_names_that_fit(name: str) -> None:
    assert snapshot_name_problem(name) == ""


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "ä", "a b", "a\n", "x" * 49])
def test_names_that_do_not(name: str) -> None:
    assert snapshot_name_problem(name)


def test_a_layer_lies_beside_the_first_file() -> None:
    assert layer_file("/a/web.qcow2", "one") == "/a/web.one.qcow2"
    assert layer_file("/a/web.raw", "one") == "/a/web.raw.one.qcow2"
    assert layer_file("/a.qcow2/web", "one") == "/a.qcow2/web.one.qcow2"


def test_a_layers_node_is_the_first_that_is_free() -> None:
    assert layer_node("qk-disk0", set()) == "qk-disk0-1"
    assert layer_node("qk-disk0-1", {"qk-disk0-2-file"}) == "qk-disk0-3"
    assert layer_node("mine", {"mine"}) == "mine-1"
    assert len(layer_node("qk-" + "d" * 20 + "-98", set()) + "-file") <= NODE_NAME_LIMIT


def test_images_know_each_by_a_name_of_its_own() -> None:
    points = [
        Snapshot(name="new", kind="internal", tag="old"),
        Snapshot(name="old-2", kind="internal"),
        Snapshot(name="b"),
    ]
    assert [tag_of(point) for point in points[:2]] == ["old", "old-2"]
    assert [free_tag(name, points) for name in ("new", "old", "b")] == ["new", "old-3", "b"]


def test_a_spec_remembers_them() -> None:
    point = Snapshot(name="one", kind="internal", time=1.5, disks={"disk0": "/a.qcow2"})
    spec = MachineSpec(name="a", snapshots=(point,), snapshot="one")
    assert spec_from_toml(spec_to_toml(spec)) == spec


def test_something_else_is_none() -> None:
    with pytest.raises(SpecInvalid, match="snapshots"):
        MachineSpec(name="a", snapshots="one")  # type: ignore[arg-type]
