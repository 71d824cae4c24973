"""`qmpkit snapshot …` and `qmpkit disk …` as the shell sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from qmpkit.cli.farm_words import Farm, Json, Name
from qmpkit.cli.image_words import file_word

__all__ = ["DISK", "SNAPSHOT"]


def _word(_: object, value: str) -> None:
    # An unset variable of a script is no name, and would be another path of the API.
    if not value or "/" in value:
        raise ValueError(f"{value!r} is no name.")


Point = Annotated[str, Parameter(help="The snapshot's name.", validator=_word)]
DiskId = Annotated[str, Parameter(help="The disk: disk0 is the first.", validator=_word)]


Speed = Annotated[
    str, Parameter(help="What it may move a second at most: 50MiB. Default: all it can.")
]


def _bytes(text: str) -> int:
    from qmpkit.spec.sizes import to_bytes

    return 0 if text == "0" else int(to_bytes(text, "a size"))


def take(
    name: Name,
    snapshot: Point,
    /,
    *,
    disk: Annotated[
        tuple[str, ...], Parameter(help="Only of this disk; may be said again.", negative="")
    ] = (),
    ram: Annotated[bool, Parameter(help="With the guest's memory, held by its images.")] = False,
    ram_file: Annotated[
        bool, Parameter(help="With the guest's memory, in a file beside the new layers.")
    ] = False,
    freeze: Annotated[
        bool, Parameter(help="Have the guest flush its file systems (needs the agent).")
    ] = False,
    folder: Annotated[Path | None, Parameter(help="Where the new layers are made.")] = None,
    description: Annotated[str, Parameter(help="What it is for.")] = "",
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Remember a machine's disks as they are at this moment, while it runs.

    Each disk gets a new layer above it, to which the guest writes from then on.
    """
    from qmpkit.cli.disk_actions import take_snapshot

    body: dict[str, Any] = {"name": snapshot, "description": description}
    body |= {"disks": list(disk)} if disk else {}
    body |= {"folder": str(folder.absolute())} if folder else {}
    body |= {"ram": True} if ram else {}
    body |= {"ram_file": True} if ram_file else {}
    body |= {"freeze": True} if freeze else {}
    return take_snapshot(name, body, farm, as_json=json)


def list_(name: Name, /, *, farm: Farm = None, json: Json = False) -> int:
    """Show a machine's snapshots, each below the one it came from; * is the current one."""
    from qmpkit.cli.disk_actions import list_snapshots

    return list_snapshots(name, farm, as_json=json)


def delete(name: Name, snapshot: Point, /, *, speed: Speed = "0", farm: Farm = None) -> int:
    """Forget a snapshot; the machine's data stay, merged while it runs."""
    from qmpkit.cli.disk_actions import delete_snapshot

    return delete_snapshot(name, snapshot, farm, _bytes(speed))


def load(name: Name, snapshot: Point, /, *, farm: Farm = None) -> int:
    """Go back to a snapshot with memory; what the guest has done since is lost."""
    from qmpkit.cli.disk_actions import load_snapshot

    return load_snapshot(name, snapshot, farm)


def rename(
    name: Name,
    snapshot: Point,
    to: Annotated[str, Parameter(help="What it is to be called.")],
    /,
    *,
    farm: Farm = None,
) -> int:
    """Give a snapshot another name."""
    from qmpkit.cli.disk_actions import rename_snapshot

    return rename_snapshot(name, snapshot, to, farm)


def revert(
    name: Name,
    snapshot: Point,
    /,
    *,
    stop: Annotated[bool, Parameter(help="Stop the machine for it, if it is up.")] = False,
    grace: Annotated[
        float | None,
        Parameter(
            help="With --stop: seconds that the guest has to power down. Default: 30.",
            validator=validators.Number(gte=0),
        ),
    ] = None,
    disks_only: Annotated[
        bool, Parameter(help="Boot, also where the snapshot has the memory.", negative="")
    ] = False,
    farm: Farm = None,
) -> int:
    """Have a machine's disks as they were at a snapshot; with --stop it starts again from there.

    With the memory that the snapshot has in a file, if it has: the guest goes on.  What the
    machine has written since stays in files that are named, and that nothing uses any more.
    """
    from qmpkit.cli.disk_actions import revert_snapshot

    return revert_snapshot(name, snapshot, farm, stop=stop, grace=grace, memory=not disks_only)


def disks(name: Name, /, *, farm: Farm = None, json: Json = False) -> int:
    """Show a machine's disks, each with the images that it is made of."""
    from qmpkit.cli.disk_actions import show_disks

    return show_disks(name, farm, as_json=json)


def move(
    name: Name,
    disk: DiskId,
    target: Annotated[Path, file_word("The new file; nothing may be there.")],
    /,
    *,
    format: Annotated[Literal["qcow2", "raw", "luks"], Parameter(help="Its format.")] = "qcow2",
    speed: Speed = "0",
    farm: Farm = None,
) -> int:
    """Put a disk into another file, whole, while the guest uses it."""
    from qmpkit.cli.disk_actions import move_disk

    return move_disk(name, disk, target, farm, format=format, speed=_bytes(speed))


def flatten(name: Name, disk: DiskId, /, *, speed: Speed = "0", farm: Farm = None) -> int:
    """Make a disk independent of the images below it, while the guest uses it."""
    from qmpkit.cli.disk_actions import flatten_disk

    return flatten_disk(name, disk, farm, _bytes(speed))


def resize(
    name: Name,
    disk: DiskId,
    size: Annotated[str, Parameter(help="The new size: 20GiB.")],
    /,
    *,
    farm: Farm = None,
) -> int:
    """Make a disk larger; the guest sees it at once."""
    from qmpkit.cli.disk_actions import resize_disk

    return resize_disk(name, disk, size, farm)


def limit(
    name: Name,
    disk: DiskId,
    /,
    *bounds: Annotated[
        str,
        Parameter(help="bps=100MiB, iops=500, or of one way bps_rd, iops_wr; bursts bps_max=…."),
    ],
    farm: Farm = None,
    json: Json = False,
) -> int:
    """Bound what a guest may read and write each second on a disk; without any, no bound.

    The bounds are those of QEMU's throttle, by its names: bps and iops, with _rd or _wr for
    one way, with _max for what it may do after a rest and _max_length for how many seconds.
    They hold from now on, and after a restart too.
    """
    from qmpkit.cli.disk_actions import limit_disk

    return limit_disk(name, disk, bounds, farm, as_json=json)


Force = Annotated[bool, Parameter(help="Open the tray also when the guest holds it.", negative="")]


def insert(
    name: Name,
    disk: DiskId,
    file: Annotated[Path, file_word("What is to be in the drive.")],
    /,
    *,
    format: Annotated[
        Literal["qcow2", "raw"] | None, Parameter(help="Its format. Default: the drive's.")
    ] = None,
    force: Force = False,
    farm: Farm = None,
) -> int:
    """Put another CD into a drive; a restart has it too."""
    from qmpkit.cli.disk_actions import insert_medium

    return insert_medium(name, disk, file, farm, format=format, force=force)


def eject(name: Name, disk: DiskId, /, *, force: Force = False, farm: Farm = None) -> int:
    """Take the CD out of a drive; after a restart it is empty too."""
    from qmpkit.cli.disk_actions import eject_medium

    return eject_medium(name, disk, farm, force=force)


SNAPSHOT: dict[str, Callable[..., Any]] = {
    "take": take,
    "list": list_,
    "delete": delete,
    "load": load,
    "rename": rename,
    "revert": revert,
}
DISK: dict[str, Callable[..., Any]] = {
    "list": disks,
    "move": move,
    "flatten": flatten,
    "resize": resize,
    "limit": limit,
    "insert": insert,
    "eject": eject,
}
