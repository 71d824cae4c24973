"""A farm while no daemon runs: what is on record, and which of its machines live.

Nothing is written, and no machine is asked anything.
"""

from __future__ import annotations

from typing import Any

from qmpkit.cli.choosing import only_one
from qmpkit.cli.daemon import absent
from qmpkit.cli.talk import talk
from qmpkit.errors import QmpkitError
from qmpkit.supervisor.onlooker import Onlook, Seen, look_at

__all__ = ["living_machine", "rows_on_record"]


class NotReachable(QmpkitError):
    """A machine whose guest cannot be reached without a daemon."""


def rows_on_record(farm: str) -> list[dict[str, Any]]:
    """What `ps` lists, as the daemon's API has it; raises NoDaemon when nothing is on record."""
    seen = _looked_at(farm)
    _tell(farm, seen)
    for lost in seen.lost:
        talk.warn(f"machine {lost.machine!r}: its record {lost.path} cannot be read ({lost.why})")
    return [_row(machine) for machine in seen.machines]


def living_machine(farm: str, word: str) -> Seen:
    """The one machine that *word* means, whose process lives and whose sockets are nobody's."""
    seen = _looked_at(farm)
    known = {machine.record.name: machine for machine in seen.machines}
    machine = known[only_one(word, list(known), farm)]
    if seen.holder is not None:
        cure = "wait for it if it is a daemon that is starting; else ask it, or end it"
        what = f"process {seen.holder} keeps farm {farm!r} and takes no requests"
        raise NotReachable(f"{what}, so {machine.record.name!r} cannot be reached. Cure: {cure}")
    if machine.end is not None:
        what = f"machine {machine.record.name!r} is not up: {machine.end.why}"
        raise NotReachable(f"{what}. {absent(farm)}")
    return machine


def _looked_at(farm: str) -> Onlook:
    if (seen := look_at(farm)) is None:
        raise absent(farm)
    return seen


def _tell(farm: str, seen: Onlook) -> None:
    told = "listed is what is on record, and which processes live"
    if seen.holder is None:
        talk.note(f"{absent(farm)}; {told}")
    else:
        talk.note(f"process {seen.holder} keeps farm {farm!r} and takes no requests; {told}")


def _row(machine: Seen) -> dict[str, Any]:
    record, end = machine.record, machine.end
    loops = record.history.crash_loop is not None and record.declared != "stopped"
    down = "crash-loop" if loops else "saved" if record.is_saved else "gone"
    return {
        "machine": record.name,
        "state": "alive" if end is None else down,
        "since": machine.since,
        "cause": "" if end is None else end.why,
        "pid": record.identity.pid if end is None and record.identity is not None else None,
        "accel": record.facts.accel,
        "declared": record.declared,
        "health": None,
        "name": record.name,
        "group": None if record.farm is None else record.farm.group,
        "memory": record.spec.memory.total,
        "cpus": record.spec.cpu.present,
    }
