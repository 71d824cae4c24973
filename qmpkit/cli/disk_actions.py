"""What `qmpkit snapshot` and `qmpkit disk` do: they ask the farm's daemon."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qmpkit.cli.exits import Exit
from qmpkit.cli.farm_actions import machine_of
from qmpkit.cli.farm_jobs import MERGED, followed
from qmpkit.cli.overrides import arguments_from
from qmpkit.cli.sizes import human_size
from qmpkit.cli.tables import print_table
from qmpkit.cli.talk import print_json, talk
from qmpkit.spec.sizes import format_size

__all__ = ["delete_snapshot", "flatten_disk", "limit_disk", "list_snapshots", "load_snapshot"]
__all__ += ["move_disk", "rename_snapshot", "resize_disk", "revert_snapshot", "show_disks"]
__all__ += ["eject_medium", "insert_medium", "take_snapshot"]


def take_snapshot(name: str, body: Mapping[str, Any], farm: str | None, *, as_json: bool) -> int:
    """`snapshot take`."""
    daemon, machine = machine_of(name, farm)
    job = daemon.post("machines", machine, "snapshots", body=dict(body))["job"]
    point = followed(daemon, job, f"taking a snapshot of {machine}", quiet=True)
    if as_json:
        print_json(point)
    else:
        stood = f"; its guest stood still for {point['pause']:.1f} s" if point["memory"] else ""
        talk.say(f"{machine}: snapshot {point['name']} of {', '.join(point['disks'])}{stood}")
    return Exit.OK


def list_snapshots(name: str, farm: str | None, *, as_json: bool) -> int:
    """`snapshot list`: a tree, the oldest first."""
    daemon, machine = machine_of(name, farm)
    found = daemon.get("machines", machine, "snapshots")
    if as_json:
        print_json(found)
        return Exit.OK
    if not found["snapshots"]:
        talk.note(f"{machine} has no snapshots")
        return Exit.OK
    headings = ("NAME", "KIND", "TAKEN", "SIZE", "DISKS", "DESCRIPTION")
    print_table(headings, _rows(found["snapshots"], found["current"]), prose=True)
    return Exit.OK


def _rows(points: list[dict[str, Any]], current: str | None) -> list[tuple[str, ...]]:
    depth: dict[str | None, int] = {None: -1}
    rows: list[tuple[str, ...]] = []
    for point in points:
        depth[point["name"]] = depth.get(point["parent"], -1) + 1
        mark = " *" if point["name"] == current else ""
        torn = "" if point["whole"] else " (its removal was begun)"
        rows.append(
            (
                "  " * depth[point["name"]] + point["name"] + mark,
                _kind(point),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(point["time"])),
                "-" if point["bytes"] is None else human_size(point["bytes"]),
                ", ".join(point["disks"]),
                point["description"] + torn,
            )
        )
    return rows


def _kind(point: Mapping[str, Any]) -> str:
    if point["kind"] == "internal":
        return "disks and RAM"
    return "disks, RAM in a file" if point["memory"] else "disks"


def delete_snapshot(name: str, snapshot: str, farm: str | None, speed: int) -> int:
    """`snapshot delete`."""
    daemon, machine = machine_of(name, farm)
    job = daemon.delete("machines", machine, "snapshots", snapshot, speed=speed)["job"]
    what = f"merging snapshot {snapshot} of {machine}"
    followed(daemon, job, what, quiet=True, given_up=MERGED)
    talk.say(f"{machine}: snapshot {snapshot} is gone, its data stay")
    return Exit.OK


def load_snapshot(name: str, snapshot: str, farm: str | None) -> int:
    """`snapshot load`."""
    daemon, machine = machine_of(name, farm)
    job = daemon.post("machines", machine, "snapshots", snapshot, "load")["job"]
    followed(daemon, job, f"going back to snapshot {snapshot} of {machine}", quiet=True)
    talk.say(f"{machine} is back at snapshot {snapshot}")
    return Exit.OK


def rename_snapshot(name: str, snapshot: str, to: str, farm: str | None) -> int:
    """`snapshot rename`."""
    daemon, machine = machine_of(name, farm)
    daemon.post("machines", machine, "snapshots", snapshot, "rename", body={"to": to})
    talk.say(f"{machine}: snapshot {snapshot} is called {to}")
    return Exit.OK


def revert_snapshot(
    name: str,
    snapshot: str,
    farm: str | None,
    *,
    stop: bool,
    grace: float | None,
    memory: bool,
) -> int:
    """`snapshot revert`."""
    daemon, machine = machine_of(name, farm)
    body: dict[str, Any] = {"stop": stop, "memory": memory} | (
        {} if grace is None else {"grace": grace}
    )
    job = daemon.post("machines", machine, "snapshots", snapshot, "revert", body=body)["job"]
    done = followed(daemon, job, f"reverting {machine} to snapshot {snapshot}", quiet=True)
    talk.say(f"{machine} is back at snapshot {snapshot}")
    for file in done["left"]:
        talk.note(f"what it has written since is in {file}, which nothing uses any more")
    return Exit.OK


def show_disks(name: str, farm: str | None, *, as_json: bool) -> int:
    """`disk list`: the layers of every disk."""
    daemon, machine = machine_of(name, farm)
    disks = daemon.get("machines", machine, "disks")["disks"]
    if as_json:
        print_json(disks)
        return Exit.OK
    if not disks:
        talk.note(f"{machine} has no disks")
        return Exit.OK
    rows = [
        (
            disk if not place else "",
            "  " * place + layer["file"],
            layer["format"],
            human_size(layer["size"]),
            human_size(layer["used"]),
        )
        for disk, layers in disks.items()
        for place, layer in enumerate(layers)
    ]
    rows += [(disk, "(empty)", "-", "-", "-") for disk, layers in disks.items() if not layers]
    print_table(("DISK", "IMAGE", "FORMAT", "SIZE", "ON THE HOST"), rows, prose=False)
    return Exit.OK


def move_disk(
    name: str, disk: str, target: Path, farm: str | None, *, format: str, speed: int
) -> int:
    """`disk move`."""
    daemon, machine = machine_of(name, farm)
    body = {"target": str(target.absolute()), "format": format, "speed": speed}
    job = daemon.post("machines", machine, "disks", disk, "move", body=body)["job"]
    moved = followed(daemon, job, f"moving {disk} of {machine}", quiet=True)
    talk.say(f"{machine}: {disk} is in {moved['file']}; the files it was in are left")
    return Exit.OK


def flatten_disk(name: str, disk: str, farm: str | None, speed: int) -> int:
    """`disk flatten`."""
    daemon, machine = machine_of(name, farm)
    job = daemon.post("machines", machine, "disks", disk, "flatten", body={"speed": speed})["job"]
    what = f"flattening {disk} of {machine}"
    followed(daemon, job, what, quiet=True, given_up=MERGED)
    talk.say(f"{machine}: {disk} needs no other image any more")
    return Exit.OK


def resize_disk(name: str, disk: str, size: str, farm: str | None) -> int:
    """`disk resize`."""
    daemon, machine = machine_of(name, farm)
    made = daemon.post("machines", machine, "disks", disk, "resize", body={"size": size})["size"]
    talk.say(f"{machine}: {disk} has {format_size(made)}; its partitions are the guest's to grow")
    return Exit.OK


def limit_disk(
    name: str, disk: str, bounds: Iterable[str], farm: str | None, *, as_json: bool
) -> int:
    """`disk limit`."""
    body = arguments_from(bounds)
    daemon, machine = machine_of(name, farm)
    told = daemon.post("machines", machine, "disks", disk, "limit", body=body)
    if as_json:
        print_json(told)
        return Exit.OK
    held = ", ".join(f"{bound}={body[bound]}" for bound in body if body[bound])
    talk.say(f"{machine}: {disk} has {held or 'no bound'}, also after a restart")
    return Exit.OK


def insert_medium(
    name: str, disk: str, file: Path, farm: str | None, *, format: str | None, force: bool
) -> int:
    """`disk insert`."""
    daemon, machine = machine_of(name, farm)
    body: dict[str, Any] = {"file": str(file.absolute()), "force": force}
    body |= {} if format is None else {"format": format}
    told = daemon.post("machines", machine, "disks", disk, "insert", body=body)
    talk.say(f"{machine}: {disk} has {told['file']} in it")
    return Exit.OK


def eject_medium(name: str, disk: str, farm: str | None, *, force: bool) -> int:
    """`disk eject`."""
    daemon, machine = machine_of(name, farm)
    daemon.post("machines", machine, "disks", disk, "eject", body={"force": force})
    talk.say(f"{machine}: {disk} is empty")
    return Exit.OK
