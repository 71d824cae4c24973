"""Backups as they are written down: points, layers, and which of them are kept.  Pure data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import attrs
import cattrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.convert import kind_of, structure_as, unstructure_any
from qmpkit.spec.faults import collect
from qmpkit.spec.suggest import among

__all__ = ["BITMAP_PREFIX", "CHECKSUMS", "MANIFEST_SCHEMA", "BackupLayer", "BackupManifest"]
__all__ += ["BackupPoint", "Merge", "Merged", "bitmap_name", "bitmap_prefix", "bitmaps_of"]
__all__ += ["files_of", "is_any_layer_file", "is_layer_file", "kept_points", "layer_file_name"]
__all__ += ["layers_below"]
__all__ += ["manifest_from_json", "manifest_to_json", "merges_for", "point_of", "point_to_dict"]
__all__ += ["point_with"]

MANIFEST_SCHEMA = 2
"""The format's number.  A reader refuses what is newer than itself.

The first one knew SHA-256 alone, as `sha256`; it is read as if it were of today.
"""

CHECKSUMS = {"xxh3_128": 32, "sha256": 64}
"""How the checksum of a layer may be computed, and its hexadecimal digits; the first for new ones.

It is there for what has changed by accident.  Who changes a layer on purpose can change the
manifest too, whatever it has, so one at the speed of memory protects as much.
"""

BITMAP_PREFIX = "qk-"
"""What the names of all dirty bitmaps of backups and checkpoints begin with."""

_FILE = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\.qcow2", re.ASCII)
_ID = re.compile(r"[0-9a-f]{8}", re.ASCII)
_DIGITS = re.compile(r"[0-9a-f]+", re.ASCII)
_LAST = 253_402_214_400.0  # seconds since the epoch: the last day that a calendar here has


@attrs.frozen(kw_only=True)
class Merged:
    """What a layer's file is once those below it, down to `parent`, have been merged into it."""

    checksum: str
    length: int
    parent: str | None = None


@attrs.frozen(kw_only=True)
class BackupLayer:
    """What one disk had at one point: a qcow2 file in the folder of the backups.

    `file`: its name there, `length` its bytes, `checksum` theirs, `xxh3_128:` or, of older
    backups, `sha256:` and hexadecimal digits.  `virtual_size`: bytes that the guest saw.
    `parent`: the file that holds what had not changed since the point before, None when
    this one is whole by itself; `why` says why it is, when that was not asked for.
    `bitmap`: the dirty bitmap in the disk's image that records what has changed since, None
    when it can have none.  `compressed`: it was written so.  `merged`: set while a prune
    replaces it.
    """

    file: str
    checksum: str
    length: int
    virtual_size: int
    parent: str | None = None
    why: str = ""
    bitmap: str | None = None
    compressed: bool = False
    merged: Merged | None = None


@attrs.frozen(kw_only=True)
class BackupPoint:
    """All disks of a machine at one moment.

    `number`: counted up, never used again.  `time`: seconds since the epoch.  `frozen`: the
    guest's file systems were flushed and stood still for it.  `disks`: by the disk's id.
    """

    number: int
    time: float
    disks: dict[str, BackupLayer]
    frozen: bool = False

    @property
    def kind(self) -> Literal["full", "incremental"]:
        """Full when no disk of it needs a point before it."""
        needs = any(layer.parent for layer in self.disks.values())
        return "incremental" if needs else "full"

    @property
    def why(self) -> str:
        """Why disks are full that were not asked to be; "" when there is none."""
        told = (f"{disk}: {layer.why}" for disk, layer in self.disks.items() if layer.why)
        return "; ".join(told)


def point_to_dict(point: BackupPoint) -> dict[str, Any]:
    """The point for those who read JSON; sizes in bytes."""
    return {**unstructure_any(point), "kind": point.kind, "why": point.why}


@attrs.frozen(kw_only=True)
class BackupManifest:
    """What a folder of backups holds: `id` is its own, `machine` the name of the one it is of."""

    id: str
    machine: str
    points: tuple[BackupPoint, ...] = ()

    @property
    def last(self) -> BackupPoint | None:
        """The newest point."""
        return self.points[-1] if self.points else None


def layer_file_name(disk: str, number: int, repository: str) -> str:
    """The file of a disk at a point: `disk0-000002-3fa9c1d2.qcow2`."""
    return f"{disk}-{number:06}-{repository}.qcow2"


def is_layer_file(name: str, repository: str) -> bool:
    """Whether a file of that name is one of this repository's layers, needed or not."""
    return re.fullmatch(rf".+-\d{{6,}}-{repository}\.qcow2", name, re.ASCII) is not None


def is_any_layer_file(name: str) -> bool:
    """Whether a file of that name is a layer of whatever repository."""
    return is_layer_file(name, "[0-9a-f]{8}")


def bitmap_prefix(repository: str) -> str:
    """What the names of all its dirty bitmaps begin with."""
    return f"{BITMAP_PREFIX}{repository}-"


def bitmap_name(repository: str, number: int, disk: str, token: str) -> str:
    """The dirty bitmap of what has changed on *disk* since that point.

    *token*: one that no other attempt has.  A disk that takes another's place, or a copy of
    the folder that goes on by itself, is not to find a bitmap of the name that it knows.
    """
    return f"{bitmap_prefix(repository)}{number}-{disk}-{token}"


def bitmaps_of(point: BackupPoint | None) -> frozenset[str]:
    """The dirty bitmaps that record what has changed since *point*."""
    layers = point.disks.values() if point else ()
    return frozenset(layer.bitmap for layer in layers if layer.bitmap)


def point_with(points: Sequence[BackupPoint], number: int | None) -> BackupPoint:
    """The point of that number, None: the newest; SpecInvalid when there is none."""
    known = {point.number: point for point in points}
    if not known:
        raise SpecInvalid([Fault("point", "there is none yet")])
    if number is None:
        number = max(known)
    if number not in known:
        hint = f"there are {', '.join(map(str, known))}"
        raise SpecInvalid([Fault("point", f"there is no point {number}", hint)])
    return known[number]


def point_of(manifest: BackupManifest, number: int | None, disk: str) -> BackupPoint:
    """`point_with`, and SpecInvalid when it has no *disk*."""
    point = point_with(manifest.points, number)
    if disk not in point.disks:
        hint = among(disk, point.disks)
        raise SpecInvalid([Fault("disk", f"point {point.number} has no disk {disk!r}", hint)])
    return point


def layers_below(manifest: BackupManifest, layer: BackupLayer) -> tuple[BackupLayer, ...]:
    """*layer* and those that it needs, down to one that is whole."""
    by_file = {known.file: known for point in manifest.points for known in point.disks.values()}
    chain = [layer]
    while (parent := chain[-1].parent) is not None:
        chain.append(by_file[parent])
    return tuple(chain)


def files_of(points: Iterable[BackupPoint]) -> set[str]:
    """The files of these points' own layers."""
    return {layer.file for point in points for layer in point.disks.values()}


def kept_points(
    points: Sequence[BackupPoint], *, keep_last: int = 0, daily: int = 0, weekly: int = 0
) -> frozenset[int]:
    """The numbers of the points that a policy keeps.

    The newest *keep_last*; of each of the last *daily* days that have points the newest,
    and of each of the last *weekly* weeks that have some (ISO weeks; both in UTC).
    SpecInvalid when one is negative, or all are 0: the newest point is always kept.
    """
    given = {"keep_last": keep_last, "daily": daily, "weekly": weekly}
    faults = [
        Fault(name, f"counts from 0, not from {value}")
        for name, value in given.items()
        if value < 0
    ]
    if not faults and not any(given.values()):
        faults = [Fault("keep_last", "this keeps nothing", "state at least one of the three")]
    if faults:
        raise SpecInvalid(faults, "what is kept of the backups")
    newest = sorted(points, key=lambda point: point.number, reverse=True)
    kept = {point.number for point in newest[:keep_last]}
    kept |= _newest_of_each(newest, daily, lambda day: day.date())
    kept |= _newest_of_each(newest, weekly, lambda day: day.isocalendar()[:2])
    return frozenset(kept)


def _newest_of_each(
    newest: Sequence[BackupPoint], count: int, period: Callable[[datetime], object]
) -> set[int]:
    found: dict[object, int] = {}
    for point in newest:
        found.setdefault(period(datetime.fromtimestamp(point.time, UTC)), point.number)
    return set(list(found.values())[:count])


@attrs.frozen
class Merge:
    """What has to be done before points can go: `layer` takes in those below it, down to `base`."""

    disk: str
    layer: BackupLayer
    base: str | None


def merges_for(manifest: BackupManifest, number: int, kept: frozenset[int]) -> tuple[Merge, ...]:
    """The merges after which the point *number*, a kept one, needs none that is not kept."""
    (point,) = (point for point in manifest.points if point.number == number)
    stays = files_of(point for point in manifest.points if point.number in kept)
    found: list[Merge] = []
    for disk, layer in point.disks.items():
        below = layers_below(manifest, layer)[1:]
        base = next((it.file for it in below if it.file in stays), None)
        if base != layer.parent:
            found.append(Merge(disk, layer, base))
    return tuple(found)


# On disk


def manifest_to_json(manifest: BackupManifest) -> str:
    """The text of `manifest.json`."""
    return json.dumps({"schema": MANIFEST_SCHEMA, **unstructure_any(manifest)}, indent=1) + "\n"


def manifest_from_json(text: str, source: str) -> BackupManifest:
    """The manifest that *text* is; SpecInvalid with all that is wrong with it."""
    try:
        data = json.loads(text, object_hook=_of_today)
    except (ValueError, RecursionError) as error:
        raise SpecInvalid([Fault("", f"this is not JSON: {error}")], source) from None
    if fault := _schema_fault(data):
        raise SpecInvalid([fault], source)
    try:
        manifest = structure_as(_without_schema(data), BackupManifest)
    except cattrs.BaseValidationError as error:
        raise SpecInvalid([found.fault for found in collect(error)], source) from None
    if faults := list(_faults(manifest)):
        raise SpecInvalid(faults, source)
    return manifest


def _schema_fault(data: object) -> Fault | None:
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if type(schema) is not int:
        return Fault("", f"this is no manifest of backups but {kind_of(data)}")
    if schema > MANIFEST_SCHEMA:
        newer = f"{schema} is newer than the {MANIFEST_SCHEMA} this qmpkit reads"
        return Fault("schema", newer, "update qmpkit")
    return None


def _without_schema(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "schema"}


def _of_today(found: dict[str, Any]) -> dict[str, Any]:
    """An object of the JSON, with the checksum of the first schema as it is written now."""
    if isinstance(found.get("sha256"), str) and "checksum" not in found:
        found["checksum"] = f"sha256:{found.pop('sha256')}"
    return found


def _faults(manifest: BackupManifest) -> Iterator[Fault]:
    """What would lead out of the folder, or into a circle."""
    if not _ID.fullmatch(manifest.id):
        yield Fault("id", f"{manifest.id!r} is not eight hexadecimal digits")
    seen: set[str] = set()
    last = 0
    for place, point in enumerate(manifest.points):
        where = f"points[{place}]"
        if point.number <= last:
            yield Fault(f"{where}.number", f"{point.number} does not follow {last}")
        last = point.number
        if not 0 <= point.time < _LAST:
            yield Fault(f"{where}.time", f"{point.time} is no time")
        for disk, layer in point.disks.items():
            yield from _layer_faults(layer, f"{where}.disks.{disk}", seen)
        seen |= {layer.file for layer in point.disks.values()}


def _layer_faults(layer: BackupLayer, where: str, before: set[str]) -> Iterator[Fault]:
    if not _FILE.fullmatch(layer.file):
        yield Fault(f"{where}.file", f"{layer.file!r} is no name of a layer")
    elif layer.file in before:
        yield Fault(f"{where}.file", f"{layer.file!r} is an older point's")
    merged = layer.merged
    parents = [layer.parent, merged.parent if merged else None]
    for parent in parents:
        if parent is not None and parent not in before:
            yield Fault(f"{where}.parent", f"no older point has {parent!r}")
    checksums = [layer.checksum, layer.merged.checksum if layer.merged else None]
    for checksum in checksums:
        if checksum is not None and (fault := _checksum_fault(checksum, f"{where}.checksum")):
            yield fault
    for name in ("length", "virtual_size"):
        if getattr(layer, name) < 0:
            yield Fault(f"{where}.{name}", "counts from 0")


def _checksum_fault(checksum: str, where: str) -> Fault | None:
    algorithm, _, digits = checksum.partition(":")
    if algorithm not in CHECKSUMS:
        known = f"this qmpkit knows {' and '.join(CHECKSUMS)}: update it"
        return Fault(where, f"there is no checksum {algorithm!r}", known)
    count = CHECKSUMS[algorithm]
    if len(digits) != count or not _DIGITS.fullmatch(digits):
        return Fault(where, f"is not {algorithm}: and {count} hexadecimal digits")
    return None
