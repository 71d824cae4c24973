"""Following a daemon's jobs to their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpkit.cli.daemon import Daemon
from qmpkit.cli.exits import DaemonSaid
from qmpkit.cli.signals import as_ctrl_c
from qmpkit.cli.sizes import human_size
from qmpkit.cli.talk import talk
from qmpkit.cli.waiting import Waiting

__all__ = ["BEAT", "DECLARED", "MERGED", "followed", "print_outcome", "result_of"]

BEAT = 1000
"""Milliseconds after which the daemon says at least that it lives."""

_WORDS = {
    "added": "is up",
    "started": "is up again",
    "changed": "was changed while it runs",
    "mended": "is whole again",
    "restarted": "was restarted",
    "unchanged": "is as declared",
    "restart-needed": "runs on; --restart makes the changes",
    "removed": "was removed",
    "failed": "FAILED",
    "blocked": "is BLOCKED",
}

_PHASES: Mapping[object, str] = {"postcopy": "it runs there, ", "cut": "its connection is cut, "}


DECLARED = "what was declared until now stays so"
MERGED = "what is merged already stays so; ask again for the rest"
_UNDONE = "what was begun is undone"


def followed(
    daemon: Daemon, job: str, what: str, *, quiet: bool = False, given_up: str = _UNDONE
) -> dict[str, Any]:
    """The result of a job, its steps told as they come, and *what* is waited for meanwhile.

    Ctrl-C or the like gives it up; *given_up* says what comes of that.
    Raises DaemonSaid with what it failed of.
    """
    try:
        with as_ctrl_c(), Waiting(what) as waiting:
            for name, data in daemon.events("jobs", job, "events", beat=BEAT):
                if name == "end":
                    return result_of(data)
                if name == "progress" and "bytes" in data:
                    waiting.what = f"{what}, {_part(data)}{_way(data)}"
                elif name == "progress":
                    waiting.what = f"{what}, {data['done']} of {data['total']} machines done"
                if name == "progress" and not quiet and "machine" in data:
                    step = f"{data['done']}/{data['total']}"
                    talk.note(f"{step} {data['machine']}: {data['what']}")
                waiting.tick()
    except KeyboardInterrupt:
        daemon.delete("jobs", job)
        talk.warn(f"given up; {given_up}")
        raise
    raise daemon.ended("has ended before the job")


def _part(step: dict[str, Any]) -> str:
    """What of a machine moves, or has moved: "its disks, "."""
    return "its disks, " if step.get("disks") else _PHASES.get(step.get("phase"), "")


def _way(step: dict[str, Any]) -> str:
    """How far a job is that moves bytes: "43 % of 10 GiB, 200 MiB/s, 30 s left"."""
    done = f"{100 * step['bytes'] // step['of'] if step['of'] else 0} % of {human_size(step['of'])}"
    if step["rate"] is None:
        return done
    return f"{done}, {human_size(int(step['rate']))}/s, {step['left']:.0f} s left"


def result_of(job: dict[str, Any]) -> dict[str, Any]:
    """The result of a job that has ended; raises DaemonSaid with what it failed of."""
    if job["state"] == "done":
        result: dict[str, Any] = job["result"]
        return result
    if job["error"] is not None:
        raise DaemonSaid(job["error"])
    raise DaemonSaid({"kinds": ["QmpkitError"], "message": f"{job['what']} was cancelled"})


def print_outcome(outcome: dict[str, Any]) -> None:
    """What became of each machine, a line each; the failures in the colour of errors."""
    for machine in outcome["machines"]:
        why = f" ({machine['why']})" if machine["why"] else ""
        line = f"{machine['name']} {_WORDS[machine['did']]}{why}"
        if machine["did"] in ("failed", "blocked"):
            talk.error(line)
        else:
            talk.say(line)
