"""Snapshots inside an image that nobody uses.

Those of a running machine are QEMU's own to make: qemu-img would see only what is on
disk, and both would write to the tables.
"""

from __future__ import annotations

import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.images.changing import changed
from qmpkit.images.details import Snapshot
from qmpkit.images.drafts import StrPath
from qmpkit.images.in_use import refuse_used
from qmpkit.images.keys import Secret
from qmpkit.images.snapshot_table import listed, the_one
from qmpkit.images.tool import Asked

__all__ = ["apply_snapshot", "create_snapshot", "delete_snapshot"]

_LONGEST = 255  # bytes: qemu-img cuts off the rest


async def create_snapshot(
    path: StrPath, name: str, format: str = "qcow2", *, secret: Secret | None = None
) -> Snapshot:
    """Keep the present content of the image at *path* as snapshot *name*, in it; what it is.

    *format* is qcow2: others have none.  *secret* opens an encrypted image.  The images
    below it are not part of the snapshot, and must not change either.

    Cancelled, it is made or not; killed, the image is sound, with leaked clusters at
    worst, which `check` frees.  `SpecInvalid` for a name that could not be told from
    others (a number is taken for an id); `ImageFailed` when there is one of that name,
    `ImageInUse` when a QEMU has the image open.
    """
    if problem := _problem(name):
        raise SpecInvalid([Fault("name", problem)])
    asked = Asked.of("make a snapshot in", path)
    if any(found.name == name for found in await _list(asked, format)):
        raise asked.failed(f"it has a snapshot {name!r} already", "choose another name")
    await changed(asked, format, ["snapshot", "-q", "-c", name], secret=secret)
    return next(found for found in await _list(asked, format) if found.name == name)


async def apply_snapshot(
    path: StrPath, snapshot: str, format: str = "qcow2", *, secret: Secret | None = None
) -> None:
    """Give the image at *path* the content of *snapshot*, a name or an id.

    What has been written since, and is in no snapshot, is lost; the snapshot stays.
    For the rest as `create_snapshot`.
    """
    asked = Asked.of("apply a snapshot in", path)
    found = the_one(asked, await _list(asked, format), snapshot)
    # By its id, which qemu-img looks at first: another's name may be the same number.
    await changed(asked, format, ["snapshot", "-q", "-a", found.id], secret=secret)


async def delete_snapshot(
    path: StrPath, snapshot: str, format: str = "qcow2", *, secret: Secret | None = None
) -> None:
    """Remove *snapshot*, a name or an id, from the image at *path*: it is lost.

    The present content stays as it is.  For the rest as `create_snapshot`.
    """
    asked = Asked.of("delete a snapshot in", path)
    those = await _list(asked, format)
    found = the_one(asked, those, snapshot)
    if sum(other.name == found.name for other in those) > 1:
        # qemu-img deletes by name alone, and would take the first.
        raise asked.failed(f"it has several snapshots {found.name!r}", "qemu's monitor knows ids")
    await changed(asked, format, ["snapshot", "-q", "-d", found.name], secret=secret)


async def _list(asked: Asked, format: str) -> tuple[Snapshot, ...]:
    """The snapshots of the image, which nobody uses."""
    return await trio.to_thread.run_sync(_unused, asked, format)


def _unused(asked: Asked, format: str) -> tuple[Snapshot, ...]:
    refuse_used(asked, for_writing=True)
    return listed(asked, format)


def _problem(name: str) -> str:
    if not name:
        return "the name is empty"
    if not name.isprintable():
        return "the name has a character that cannot be shown"
    if name.isdigit():
        return f"{name!r} would be taken for a snapshot's id"
    if len(name.encode(errors="replace")) > _LONGEST:
        return f"the name is longer than {_LONGEST} bytes"
    return ""
