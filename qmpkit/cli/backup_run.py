"""`qmpkit backup run`: asked of the daemon that has the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qmpkit.cli.daemon import Daemon, farm_daemon
from qmpkit.cli.farm_jobs import BEAT, result_of
from qmpkit.cli.sizes import human_size
from qmpkit.cli.talk import talk
from qmpkit.cli.waiting import Waiting
from qmpkit.spec.sizes import to_bytes

__all__ = ["run"]

_PHASES = {"compare": "comparing with the disks", "checksum": "computing checksums"}


def run(name: str, folder: Path, farm: str | None, wanted: dict[str, Any], speed: str) -> None:
    """Back the machine up as *wanted*, and say what the point is."""
    rate = int(to_bytes(speed, "--speed"))
    body = {"folder": str(folder.absolute()), "speed": rate, **wanted}
    daemon = farm_daemon(farm)
    job = daemon.post("machines", name, "backup", body=body)["job"]
    point = _followed(daemon, job, f"backing up {name}")
    size = human_size(sum(layer["length"] for layer in point["disks"].values()))
    talk.say(f"{folder}: point {point['number']} of {name}, {point['kind']}, {size}")
    if point["why"]:
        talk.note(f"copied whole: {point['why']}")


def _followed(daemon: Daemon, job: str, what: str) -> dict[str, Any]:
    try:
        with Waiting(what) as waiting:
            for event, data in daemon.events("jobs", job, "events", beat=BEAT):
                if event == "end":
                    return result_of(data)
                if event == "progress":
                    phase = _PHASES.get(data["phase"], what)
                    waiting.what = f"{phase}, {data['percent']} %"
                waiting.tick()
    except KeyboardInterrupt:
        daemon.delete("jobs", job)
        talk.warn("given up; the backups are as they were")
        raise
    raise daemon.ended("has ended before the job")
