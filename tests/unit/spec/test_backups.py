"""Manifests that are refused, and which points a policy keeps."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.spec.backups import (
    BackupLayer,
    BackupManifest,
    BackupPoint,
    files_of,
    is_layer_file,
    kept_points,
    layer_file_name,
    layers_below,
    manifest_from_json,
    manifest_to_json,
    merges_for,
    point_with,
)

ID = "0123abcd"


def layer(number: int, parent: int | None = None, disk: str = "disk0") -> BackupLayer:
    return BackupLayer(
        file=layer_file_name(disk, number, ID),
        checksum=f"xxh3_128:{number:032x}",
        length=number,
        virtual_size=1 << 20,
        parent=None if parent is None else layer_file_name(disk, parent, ID),
    )


def point(number: int, time: float = 0.0, parent: int | None = None) -> BackupPoint:
    return BackupPoint(number=number, time=time, disks={"disk0": layer(number, parent)})


def chain(count: int) -> BackupManifest:
    points = [point(number, parent=number - 1 or None) for number in range(1, count + 1)]
    return BackupManifest(id=ID, machine="web", points=tuple(points))


def at(*days: str) -> list[BackupPoint]:
    times = [datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() for day in days]
    return [point(number, time) for number, time in enumerate(times, 1)]


DAYS = at(
    "2026-01-04T23:59:59",  # a Sunday
    "2026-01-05T00:00:00",  # Monday: another ISO week
    "2026-01-05T12:00:00",
    "2026-01-11T08:00:00",
    "2026-01-12T00:30:00",
    "2026-01-12T09:00:00",
)


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ({"keep_last": 2}, {5, 6}),
        ({"keep_last": 99}, {1, 2, 3, 4, 5, 6}),
        ({"daily": 1}, {6}),
        ({"daily": 3}, {6, 4, 3}),
        ({"daily": 99}, {6, 4, 3, 1}),
        ({"weekly": 2}, {6, 4}),
        ({"weekly": 3}, {6, 4, 1}),
        ({"keep_last": 2, "daily": 2, "weekly": 3}, {6, 5, 4, 1}),
    ],
)
def test_a_policy_keeps(policy: dict[str, int], kept: set[int]) -> None:
    assert kept_points(DAYS, **policy) == kept
    assert kept_points(DAYS[::-1], **policy) == kept


def test_the_turn_of_the_year_is_one_iso_week() -> None:
    assert kept_points(at("2025-12-31", "2026-01-01"), weekly=2) == {2}


@pytest.mark.parametrize("policy", [{}, {"keep_last": -1}, {"daily": 1, "weekly": -2}])
def test_a_policy_that_keeps_nothing_is_refused(policy: dict[str, int]) -> None:
    with pytest.raises(SpecInvalid, match=r"keeps nothing|counts from 0"):
        kept_points(DAYS, **policy)


@given(
    times=st.lists(st.floats(0, 4e9), min_size=1, max_size=30),
    last=st.integers(0, 5),
    daily=st.integers(0, 5),
    weekly=st.integers(1, 5),
)
def test_the_newest_is_always_kept(times: list[float], last: int, daily: int, weekly: int) -> None:
    points = [point(number, time) for number, time in enumerate(sorted(times), 1)]
    kept = kept_points(points, keep_last=last, daily=daily, weekly=weekly)
    assert len(points) in kept
    assert len(kept) <= last + daily + weekly


@given(st.integers(1, 12), st.data())
def test_after_the_merges_no_kept_point_needs_another(count: int, data: st.DataObject) -> None:
    manifest = chain(count)
    kept = frozenset(data.draw(st.sets(st.integers(1, count)))) | {count}
    for number in sorted(kept):
        for merge in merges_for(manifest, number, kept):
            done = attrs.evolve(merge.layer, parent=merge.base)
            points = [
                attrs.evolve(it, disks={"disk0": done}) if it.number == number else it
                for it in manifest.points
            ]
            manifest = attrs.evolve(manifest, points=tuple(points))
    points = [it for it in manifest.points if it.number in kept]
    rest = attrs.evolve(manifest, points=tuple(points))
    assert manifest_from_json(manifest_to_json(rest), "") == rest
    needed = {it.file for p in points for it in layers_below(rest, p.disks["disk0"])}
    assert needed == files_of(points)


def test_a_manifest_comes_back() -> None:
    manifest = chain(3)
    assert manifest_from_json(manifest_to_json(manifest), "x") == manifest
    assert [it.length for it in layers_below(manifest, layer(3, 2))] == [3, 2, 1]
    assert [it.kind for it in manifest.points] == ["full", "incremental", "incremental"]
    assert point_with(manifest.points, None).number == 3
    with pytest.raises(SpecInvalid, match="there is none yet"):
        point_with((), None)


def broken(**changes: Any) -> str:
    data = json.loads(manifest_to_json(chain(2)))
    data["points"][1]["disks"]["disk0"] |= changes
    return json.dumps(data)


def older(**changes: Any) -> str:
    """A manifest of the first schema, which knew SHA-256 alone."""
    whole = "a" * 64
    layer = {"file": "disk0-000001-0123abcd.qcow2", "sha256": whole, "length": 1}
    layer |= {"virtual_size": 2, "merged": {"sha256": whole, "length": 3, "parent": None}}
    point = {"number": 1, "time": 0.0, "disks": {"sha256": {**layer, **changes}}}
    return json.dumps({"schema": 1, "id": ID, "machine": "web", "points": [point]})


def test_a_manifest_of_the_first_schema_is_read() -> None:
    manifest = manifest_from_json(older(), "")
    (layer,) = manifest.points[0].disks.values()
    assert layer.checksum == f"sha256:{'a' * 64}"
    assert layer.merged is not None and layer.merged.checksum == layer.checksum
    text = manifest_to_json(manifest)
    assert json.loads(text)["schema"] == 2
    assert manifest_from_json(text, "") == manifest


def timed(time: float) -> str:
    return manifest_to_json(BackupManifest(id=ID, machine="web", points=(point(1, time),)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no manifest of backups but a list"),
        ('{"schema": true}', "no manifest"),
        ('{"schema": 3}', "newer than the 2"),
        ('{"schema": 1, "id": "0123abcd"}', "machine: is missing"),
        ('{"schema": 1, "id": "x", "machine": "web", "points": []}', "hexadecimal"),
        (broken(file="../../etc/passwd"), "is no name of a layer"),
        (broken(file="/etc/a.qcow2"), "is no name of a layer"),
        (broken(file=layer(1).file), "is an older point's"),
        (broken(parent=layer(2).file), "no older point has"),
        (broken(parent="../x.qcow2"), "no older point has"),
        (broken(merged={"checksum": "", "length": 1, "parent": "x"}), "no older point has 'x'"),
        (broken(merged={"checksum": "sha256:", "length": 1}), "sha256: and 64 hexadecimal digits"),
        (broken(checksum="md4:0"), "no checksum 'md4'.* knows xxh3_128 and sha256: update it"),
        (broken(checksum="f" * 64), "there is no checksum"),
        (broken(checksum=f"xxh3_128:{'f' * 64}"), "xxh3_128: and 32 hexadecimal digits"),
        (broken(checksum=f"sha256:{'F' * 64}"), "sha256: and 64 hexadecimal digits"),
        (broken(sha256="0" * 64), "unknown key"),
        (older(sha256="0"), "sha256: and 64 hexadecimal digits"),
        (older(sha256=0), "checksum: is missing"),
        (broken(length="1"), "must be a whole number"),
        (broken(lenght=1), "unknown key"),
        (broken(length=-1), "length: counts from 0"),
        *((timed(time), "is no time") for time in (-1.0, 1e300, math.inf, math.nan)),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecInvalid, match=said):
        manifest_from_json(text, "manifest.json")


def test_layers_are_known_by_their_names() -> None:
    assert is_layer_file(layer_file_name("data.1-x", 1234567, ID), ID)
    for name in ("disk0-000001-0123abce.qcow2", "disk0-1-0123abcd.qcow2", "mine.qcow2"):
        assert not is_layer_file(name, ID)
