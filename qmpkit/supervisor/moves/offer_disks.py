"""Disks that go along to another supervisor: what it is told of them, and read strictly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations.migration.storage import SHARED, DiskMove
from qmpkit.spec.block import BaseFormat
from qmpkit.spec.machine import MachineSpec

__all__ = ["disks_from", "disks_to", "with_bitmaps"]

_KEYS = {"id", "size", "bytes", "base"}
_MOST = (1 << 63) - 1
_LONGEST = 4096
_MANY = 1024


def disks_to(moves: Iterable[DiskMove]) -> str | list[dict[str, Any]]:
    """The words for them; where their images are to be says the spec that goes with them."""
    told = [
        {"id": move.id, "size": move.size, "bytes": move.bytes, "base": move.base} for move in moves
    ]
    return told or SHARED


def disks_from(plain: object, spec: MachineSpec) -> tuple[DiskMove, ...]:
    """The reverse; raises SpecInvalid with what is wrong."""
    if plain == SHARED:
        return ()
    if not isinstance(plain, list) or not plain or len(plain) > _MANY:
        raise _senseless(Fault("disks", f"cannot be {plain!r:.50}", SHARED))
    if faults := [fault for it in plain for fault in _faults(it, spec)]:
        raise _senseless(*faults)
    by_id = {disk.id: disk for disk in spec.disks}
    if len({it["id"] for it in plain}) < len(plain):
        raise _senseless(Fault("disks", "one is named twice"))
    return tuple(
        DiskMove(
            disk=by_id[it["id"]],
            source="",
            file="",
            size=it["size"],
            bytes=it["bytes"],
            number=number,
            base=None if it["base"] is None else (it["base"][0], it["base"][1]),
        )
        for number, it in enumerate(plain)
    )


def _faults(it: object, spec: MachineSpec) -> Iterator[Fault]:
    if not isinstance(it, dict) or it.keys() != _KEYS:
        yield Fault("disks", f"{it!r:.50} is none")
        return
    disk = next((disk for disk in spec.disks if disk.id == it["id"]), None)
    if disk is None or disk.is_readonly or disk.driver != "file" or disk.make is not None:
        yield Fault("disks", f"{it['id']!r:.50} is none that could be written to")
    elif not disk.file.startswith("/"):
        yield Fault("disks", f"{disk.file!r} is no absolute path")
    for name, least in (("size", 1), ("bytes", 0)):
        if type(it[name]) is not int or not least <= it[name] <= _MOST:
            yield Fault(f"disks.{name}", f"cannot be {it[name]!r:.50}")
    if it["base"] is not None and not _is_base(it["base"]):
        yield Fault("disks.base", f"cannot be {it['base']!r:.50}")


def _is_base(base: object) -> bool:
    if not isinstance(base, list) or len(base) != 2 or not all(isinstance(it, str) for it in base):
        return False
    return base[0].startswith("/") and len(base[0]) <= _LONGEST and base[1] in get_args(BaseFormat)


def with_bitmaps(moves: Sequence[DiskMove], plain: object) -> tuple[DiskMove, ...]:
    """The same with the dirty bitmaps that a peer says go along; SpecInvalid."""
    told = plain if isinstance(plain, dict) else {}
    found = []
    for move in moves:
        names = told.get(move.id, [])
        if not isinstance(names, list) or len(names) > _MANY or not all(map(_is_name, names)):
            raise _senseless(Fault("bitmaps", "makes no sense"))
        found.append(attrs.evolve(move, bitmaps=tuple(names)))
    return tuple(found)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) < _MANY


def _senseless(*faults: Fault) -> SpecInvalid:
    return SpecInvalid(faults, "the offer")
