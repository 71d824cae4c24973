"""What it takes to make the machines there are into those declared: decided, not done."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from qmpkit.spec.farm import Farm, FarmMachine, Flaw
from qmpkit.spec.farm_data import machine_from_dict, machine_to_dict, scale
from qmpkit.spec.farm_order import start_order
from qmpkit.spec.resources import controllers

__all__ = ["Add", "Change", "ChangeLive", "Known", "Plan", "Remove", "RestartNeeded"]
__all__ += ["Step", "Unchanged", "plan", "scale"]


@attrs.frozen
class Known:
    """A machine as the journal has it (`machine_to_dict`), and whether it has a process now.

    `flaws`: what of its networks is not as it was made.  `saved`: it has RAM to go on with, which
    is discarded when it is forgotten.
    """

    machine: Mapping[str, Any]
    running: bool = True
    flaws: tuple[Flaw, ...] = ()
    saved: bool = False


@attrs.frozen
class Change:
    """One field that differs ("spec.memory.size"), as plain data; None where there was nothing.

    Of what cloud-init is told, which may hold secrets, only digests.
    """

    field: str
    old: object
    new: object


@attrs.frozen
class Add:
    """A machine that is declared and not known."""

    machine: FarmMachine

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.machine.name


@attrs.frozen
class Remove:
    """A machine that is known and not declared; it is stopped first when it is running.

    `saved`: what it was saved with is discarded.
    """

    name: str
    running: bool
    saved: bool = False


@attrs.frozen
class Unchanged:
    """A machine that is as declared."""

    name: str
    running: bool


@attrs.frozen
class ChangeLive:
    """Changes that need no restart: of the supervisor's own matter, of ports, of its place on
    the host, or of a machine that is not running.

    `flaws`: what of its networks is made anew, perhaps with no change at all.  `saved`: what it
    was saved with fits no other spec, so `up` refuses it.
    """

    name: str
    changes: tuple[Change, ...]
    running: bool
    flaws: tuple[Flaw, ...] = ()
    saved: bool = False


@attrs.frozen
class RestartNeeded:
    """Changes of which some are seen by a running machine only after a restart.

    `needing`: those; `changes`: all of them.  `flaws`: what of its networks is made anew, of
    which some may be only after a restart too.
    """

    name: str
    changes: tuple[Change, ...]
    needing: tuple[Change, ...]
    flaws: tuple[Flaw, ...] = ()


Step = Add | Remove | Unchanged | ChangeLive | RestartNeeded


@attrs.frozen
class Plan:
    """What to do, in this order: removals, the last to start first; then the others as they start.

    So a name, a port or a disk is free before another machine takes it.
    """

    steps: tuple[Step, ...]

    @property
    def is_empty(self) -> bool:
        """Whether everything is as declared, and runs: `up` starts what is down."""
        return all(isinstance(step, Unchanged) and step.running for step in self.steps)


# Whoever supervises the machine reads these anew; how a network is set up is the host's, and
# which one it is the cable's, not to be moved under a guest; a forward is QEMU's to add and
# take away (hostfwd_add).
_LIVE = re.compile(
    r"(group|restart|health|after|requires|spec\.description)([.\[].*)?"
    r"|networks\[\d+\]\.(ip|network\.(?!kind|bridge).*)"
    r"|spec\.nics\[\d+\]\.forwards([.\[].*)?"
)
# What is done from outside QEMU (sched_setaffinity, tc, a control group that is there).
_TUNABLE = re.compile(
    r"spec\.cpu\.pin([.\[].*)?"
    r"|spec\.resources\.(emulator|iothreads|policy|priority|nice)([.\[].*)?"
    r"|spec\.nics\[\d+\]\.max_(received|sent)"
)
_LIMITS = re.compile(r"spec\.resources\..*")
_HIDDEN = ("user_data", "meta_data", "network_config")


def plan(declared: Farm, known: Mapping[str, Known]) -> Plan:
    """The steps from *known*, by name, to *declared*; those that need nothing are told too.

    Raises `SpecInvalid` for a recorded machine that cannot be read.
    """
    recorded = {
        name: machine_from_dict(item.machine, source=f"recorded machine {name!r}")
        for name, item in known.items()
    }
    wanted = {machine.name: machine for machine in declared.machines}
    steps: list[Step] = [
        Remove(name, known[name].running, known[name].saved)
        for name in reversed(start_order(_before(recorded)))
        if name not in wanted
    ]
    for name in start_order(_before(wanted)):
        if name in recorded:
            steps.append(_step(recorded[name], wanted[name], known[name]))
        else:
            steps.append(Add(wanted[name]))
    return Plan(tuple(steps))


def _before(machines: Mapping[str, FarmMachine]) -> dict[str, tuple[str, ...]]:
    return {name: item.waits_for for name, item in machines.items()}


def _step(old: FarmMachine, new: FarmMachine, known: Known) -> Step:
    changes, flaws = tuple(_differences(_shown(old), _shown(new), "")), known.flaws
    if not changes and not flaws:
        return Unchanged(new.name, known.running)
    needing = tuple(change for change in changes if not _is_live(change.field, old))
    if (needing and known.running) or not all(flaw.mendable for flaw in flaws):
        return RestartNeeded(new.name, changes, needing, flaws)
    return ChangeLive(new.name, changes, known.running, flaws, known.saved and old.spec != new.spec)


def _is_live(field: str, old: FarmMachine) -> bool:
    if controllers(old.spec.resources) and _LIMITS.fullmatch(field):
        return True
    return bool(_LIVE.fullmatch(field) or _TUNABLE.fullmatch(field))


def _shown(machine: FarmMachine) -> dict[str, Any]:
    data = machine_to_dict(machine)
    seed = data.get("seed", {})
    for key in seed.keys() & set(_HIDDEN):
        text = json.dumps(seed[key], sort_keys=True)
        seed[key] = f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return data


def _differences(old: object, new: object, path: str) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            inner = f"{path}.{key}" if path else key
            yield from _differences(old.get(key), new.get(key), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from _differences(left, right, f"{path}[{number}]")
    elif old != new or type(old) is not type(new):
        yield Change(path, old, new)
