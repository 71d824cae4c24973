"""What `qmpkit migrate` does: it asks the farm's daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpkit.cli.exits import Exit
from qmpkit.cli.farm_actions import machine_of
from qmpkit.cli.farm_jobs import followed
from qmpkit.cli.talk import print_json, talk
from qmpkit.errors import Fault

__all__ = ["check_migration", "migrate_machine", "settle_migration"]

_GIVEN_UP = "it stays where it is, if it does not run in its new place already: see `qmpkit ps`"


def migrate_machine(name: str, body: Mapping[str, Any], farm: str | None, *, as_json: bool) -> int:
    """`migrate`."""
    daemon, machine = machine_of(name, farm)
    job = daemon.post("machines", machine, "migrate", body=dict(body))["job"]
    took = followed(daemon, job, f"migrating {machine}", quiet=True, given_up=_GIVEN_UP)
    if as_json:
        print_json(took)
    else:
        stood = f"; its guest stood still for {took['downtime']:.3f} s" if took["downtime"] else ""
        where = took["to"] if "to" in took else f"process {took['pid']}"
        talk.say(f"{machine} has migrated to {where}{stood}")
    return Exit.OK


def settle_migration(name: str, body: Mapping[str, Any], farm: str | None, *, as_json: bool) -> int:
    """`migrate --settle`."""
    daemon, machine = machine_of(name, farm)
    job = daemon.post("machines", machine, "migrate", "settle", body=dict(body))["job"]
    found = followed(daemon, job, f"asking about {machine}", quiet=True)
    if as_json:
        print_json(found)
    elif found["is"] == "unknown":
        talk.error(
            f"{machine} stands still: nobody can be asked whether it runs elsewhere. Cure: once "
            "the other side can be reached, again; `--settle --here` if it never will run there"
        )
    else:
        talk.say(f"{machine} is {found['is']}")
    return Exit.FAILED if found["is"] == "unknown" else Exit.OK


def check_migration(name: str, body: Mapping[str, Any], farm: str | None, *, as_json: bool) -> int:
    """`migrate --check`."""
    daemon, machine = machine_of(name, farm)
    found = daemon.post("machines", machine, "migrate", "check", body=dict(body))
    if as_json:
        print_json(found)
    for fault in () if as_json else found["faults"]:
        talk.error(f"{machine}: {Fault(**fault)}")
    if not as_json and not found["faults"]:
        talk.say(f"{machine} can migrate")
    return Exit.MISTAKE if found["faults"] else Exit.OK
