"""What `qmpkit save`, `discard` and `lab` do: they ask the farm's daemon."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from qmpkit.cli.daemon import farm_daemon
from qmpkit.cli.exits import DaemonSaid, Exit, exit_of
from qmpkit.cli.farm_actions import chosen, each
from qmpkit.cli.farm_jobs import MERGED, followed
from qmpkit.cli.sizes import human_size
from qmpkit.cli.tables import print_table
from qmpkit.cli.talk import print_json, talk

__all__ = ["delete_checkpoint", "discard_saved", "list_checkpoints", "rewind_to"]
__all__ += ["save_machines", "take_checkpoint"]


def save_machines(words: Sequence[str], farm: str | None, *, ram: str, as_json: bool) -> int:
    """`save`: all at the same time; of those that a pattern means, the ones that are up."""
    daemon, body = farm_daemon(farm), {"ram": ram}
    up = {it["name"] for it in daemon.get("machines")["machines"] if it["pid"] is not None}
    names = [name for name in chosen(daemon, words) if name in up or name in words]
    if not names:
        talk.note("none of them is up")
    jobs = [(name, daemon.post("machines", name, "save", body=body)["job"]) for name in names]
    worst, saved = each(
        daemon, jobs, "be saved", lambda done: f"is saved ({human_size(done['bytes'])})"
    )
    if as_json:
        print_json(saved)
    return worst


def discard_saved(words: Sequence[str], farm: str | None) -> int:
    """`discard`."""
    daemon, worst = farm_daemon(farm), Exit.OK
    for name in chosen(daemon, words):
        try:
            daemon.delete("machines", name, "saved")
            talk.say(f"{name} boots when it is started")
        except DaemonSaid as error:
            talk.error(str(error))
            worst = max(worst, exit_of(error) or Exit.FAILED)
    return worst


def take_checkpoint(
    name: str, words: Sequence[str], farm: str | None, *, description: str, as_json: bool
) -> int:
    """`lab checkpoint`."""
    daemon = farm_daemon(farm)
    body: dict[str, Any] = {"name": name, "description": description}
    body |= {"machines": chosen(daemon, words)} if words else {}
    job = daemon.post("checkpoints", body=body)["job"]
    point = followed(daemon, job, f"taking the checkpoint {name}", quiet=True)
    if as_json:
        print_json(point)
    else:
        machines = ", ".join(point["machines"])
        talk.say(f"checkpoint {name} of {machines}; they stood still for {point['pause']:.1f} s")
    return Exit.OK


def rewind_to(name: str, farm: str | None, *, as_json: bool) -> int:
    """`lab rewind`."""
    daemon = farm_daemon(farm)
    job = daemon.post("checkpoints", name, "rewind")["job"]
    point = followed(daemon, job, f"going back to the checkpoint {name}", quiet=True)
    if as_json:
        print_json(point)
    else:
        talk.say(f"{', '.join(point['machines'])}: back at the checkpoint {name}")
    return Exit.OK


def list_checkpoints(farm: str | None, *, as_json: bool) -> int:
    """`lab list`."""
    daemon = farm_daemon(farm)
    points = daemon.get("checkpoints")["checkpoints"]
    if as_json:
        print_json(points)
    elif not points:
        talk.note(f"farm {daemon.farm!r} has no checkpoints")
    else:
        print_table(("NAME", "TAKEN", "MACHINES", "DESCRIPTION"), map(_row, points), prose=True)
    return Exit.OK


def _row(point: Mapping[str, Any]) -> tuple[str, ...]:
    torn = "" if point["whole"] else " (interrupted: remove it)"
    torn = " (its rewind was interrupted: rewind again)" if point["rewinding"] else torn
    return (
        point["name"],
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(point["time"])),
        ", ".join(point["machines"]),
        point["description"] + torn,
    )


def delete_checkpoint(name: str, farm: str | None) -> int:
    """`lab rm`."""
    daemon = farm_daemon(farm)
    job = daemon.delete("checkpoints", name)["job"]
    what = f"merging the checkpoint {name}"
    followed(daemon, job, what, quiet=True, given_up=MERGED)
    talk.say(f"checkpoint {name} is gone, the machines' data stay")
    return Exit.OK
