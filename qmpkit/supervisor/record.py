"""What is remembered of a kept machine: plain data, and its form on disk."""

from __future__ import annotations

import hashlib
import json
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import cattrs

from qmpkit.errors import Fault, QmpkitError
from qmpkit.machine.ledger import Change
from qmpkit.machine.report import ExitCause, ExitReport
from qmpkit.process.identity import Identity
from qmpkit.process.places import who_is_at
from qmpkit.spec.convert import structure_as, unstructure_any
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.facts import Facts, Flash
from qmpkit.spec.farm import FarmMachine, Joined
from qmpkit.spec.farm_data import (
    join_from_dict,
    join_to_dict,
    machine_from_dict,
    machine_to_dict,
)
from qmpkit.spec.farm_networks import Network, fits
from qmpkit.spec.given import items_of
from qmpkit.spec.health import FunctionCheck, Health, health_faults
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.resources import AUTO
from qmpkit.spec.restart import Restart, restart_faults
from qmpkit.spec.sites import Sites
from qmpkit.supervisor.policy import Cause, History, Mishap

__all__ = ["SCHEMA", "Declared", "End", "Heir", "Leaving", "Malformed", "NewerSchema", "Record"]
__all__ += ["MATTERS", "Remainder", "Wanted", "digest_of"]

SCHEMA = 1
"""The format's number. A reader refuses what is newer than itself."""

Declared = Literal["running", "paused", "stopped"]
Phase = Literal["starting", "up", "ending", "down"]


class Malformed(ValueError):
    """A text that is no record of a machine."""


class NewerSchema(Exception):
    """A record of a later qmpkit; `schema` is its number."""

    def __init__(self, schema: int) -> None:
        self.schema = schema
        super().__init__(schema)


@attrs.frozen
class End:
    """How a kept machine ended last.

    `cause` is a `Mishap` for what is no end of QEMU's, such as a start that failed; `why`
    tells more.  `uptime` is in seconds, `time` in seconds since the epoch,
    `boot` the host's boot in which it was noticed.
    """

    cause: Cause
    why: str
    uptime: float
    time: float
    boot: str

    @classmethod
    def of(cls, report: ExitReport, boot: str) -> End:
        """The end that *report* tells of, now."""
        return cls(report.cause, str(report), report.uptime, time.time(), boot)


def _after(value: Iterable[str]) -> tuple[str, ...]:
    return items_of(value, "after", "a list of machines' names", (str,))


def _requires(value: Iterable[str]) -> tuple[str, ...]:
    return items_of(value, "requires", "a list of machines' names", (str,))


@attrs.frozen(kw_only=True)
class Wanted:
    """What an owner wants of a kept machine; `Record` and `Supervisor.ensure` say more."""

    spec: MachineSpec
    restart: Restart
    health: Health | None = None
    after: tuple[str, ...] = attrs.field(default=(), converter=_after)
    requires: tuple[str, ...] = attrs.field(default=(), converter=_requires)
    farm: FarmMachine | None = None
    declared: Declared = "running"

    def faults(self) -> Iterator[Fault]:
        """Numbers that make no sense, and checks that can never pass."""
        yield from restart_faults(self.restart)
        yield from () if self.health is None else health_faults(self.health)


MATTERS = ("restart", "health", "after", "requires", "farm")


@attrs.frozen(kw_only=True)
class Heir:
    """The process that a machine is moving to; the fields are those of `Record`."""

    identity: Identity
    sockets: str
    argv: tuple[str, ...]
    facts: Facts
    spec: MachineSpec


@attrs.frozen(kw_only=True)
class Leaving:
    """The move to another supervisor that is under way: its number, and where to ask about it.

    `place`, `tls`: as `move_place` takes them.  `who`: the other supervisor's own mark; what
    another one says there means nothing.
    """

    id: str
    place: str
    who: str
    tls: str | None = None


@attrs.frozen(kw_only=True)
class Remainder:
    """The memory that follows a guest from another supervisor, or may (postcopy).

    `within`: seconds that its source may be cut off.  `address`: where QEMU waited for it by
    TCP, "" by a unix socket.
    """

    within: float
    address: str = ""


@attrs.frozen(kw_only=True)
class Record:
    """One kept machine.

    `declared` is what its owner wants.  `spec` is the spec as it was resolved, with the
    UUID its monitor must answer with; `asked` a digest of the spec it was made from.
    `phase`: "starting" until the process outlives us, then "up", "ending" once its guest is
    down and `end` says why, "down" when the process is gone; `identity` is its process,
    `end` how it ended last, `history` what its policy made of that and the ends before.
    `argv`, `facts`: of the process; `sites`: where it was put, when `spec` leaves that to each
    start (`cpu.pin = "auto"`).  `sockets`: the directory where they are.
    `health`, `after`, `requires`: as in `Supervisor.ensure`.  `farm`: the machine as the
    farm file has it that it comes from, None for one that a program made.  `change`: one of
    its disks or devices that is under way.  `heir`: the process that it is moving to.
    `plugged`: networks that it has joined while it ran.
    `leaving`: its move to another supervisor.  `arriving`: the number of the move by which it
    comes from one, until it is told to run; `arrived`: then.  `rest`: until all of it is here.
    """

    name: str
    declared: Declared
    spec: MachineSpec
    asked: str
    restart: Restart
    sockets: str
    health: Health | None = None
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    farm: FarmMachine | None = None
    phase: Phase = "starting"
    identity: Identity | None = None
    argv: tuple[str, ...] = ()
    facts: Facts = attrs.field(factory=Facts)
    sites: Sites | None = None
    end: End | None = None
    history: History = attrs.field(factory=History)
    change: Change | None = None
    heir: Heir | None = None
    plugged: tuple[Joined, ...] = ()
    leaving: Leaving | None = None
    arriving: str = ""
    arrived: str = ""
    rest: Remainder | None = None
    time: float = attrs.field(factory=time.time)

    @property
    def joined(self) -> tuple[Joined, ...]:
        """Its places in the networks of its farm, and in those that it has joined since.

        Its NICs have them: of one that was unplugged nothing is left, and another that has got its
        id is where that one is.
        """
        there = {nic.id: nic for nic in self.spec.nics}
        since = {it.nic: it for it in self.plugged if it.nic in there}
        first = [it for it in self._declared_places if it.nic in there.keys() - since.keys()]
        return (*(it for it in first if fits(there[it.nic], it.network)), *since.values())

    @property
    def networks(self) -> dict[str, Network]:
        """Those that it is or was in, by name."""
        return {it.name: it.network for it in (*self._declared_places, *self.plugged)}

    @property
    def _declared_places(self) -> tuple[Joined, ...]:
        return () if self.farm is None else self.farm.networks

    @property
    def members(self) -> tuple[str, ...]:
        """Who it is in those: the process on record, and the one that it is moving to."""
        known = [self.sockets] if self.heir is None else [self.sockets, self.heir.sockets]
        return tuple(who_is_at(Path(sockets), self.name) for sockets in known)

    @property
    def running(self) -> MachineSpec:
        """The spec of the process, which sits somewhere."""
        if self.sites is None or self.spec.cpu.pin != AUTO:
            return self.spec  # it may have been tuned since
        return self.sites.given_to(self.spec)

    @property
    def is_saved(self) -> bool:
        """Whether it is to stay down, and goes on with its RAM when it is started."""
        return self.declared == "stopped" and self.spec.resume_from is not None

    def wanting(self, wanted: Wanted) -> Record:
        """With what its owner wants now but for the spec, which a start needs to change."""
        own = {name: getattr(wanted, name) for name in MATTERS}
        return attrs.evolve(self, declared=wanted.declared, **own)

    def after_try(self, tried: Record) -> Record:
        """As it was before a start that failed; a RAM that the guest went on with is used up."""
        spec = attrs.evolve(self.spec, resume_from=tried.spec.resume_from)
        return self if spec == self.spec else attrs.evolve(self, spec=spec)

    def to_json(self) -> str:
        """The text that is written; checks that are functions are in no text."""
        plain = {name: getattr(self, name) for name in _AS_THEY_ARE}
        plain |= {
            "schema": SCHEMA,
            "restart": attrs.asdict(self.restart),
            "facts": attrs.asdict(self.facts),
            "identity": None if self.identity is None else self.identity.to_dict(),
            "sites": None if self.sites is None else attrs.asdict(self.sites),
            "end": None if self.end is None else _end_to_dict(self.end),
            "health": _health_to_dict(self.health),
            "farm": None if self.farm is None else machine_to_dict(self.farm),
            "history": self.history.to_dict(),
            "change": None if self.change is None else _change_to_dict(self.change),
            "heir": None if self.heir is None else _heir_to_dict(self.heir),
            "plugged": [join_to_dict(join) for join in self.plugged],
            "leaving": None if self.leaving is None else attrs.asdict(self.leaving),
            "rest": None if self.rest is None else attrs.asdict(self.rest),
        }
        # With an indent it takes ten times as long.
        return f'{{"spec": {_text_of(self.spec)}, {json.dumps(plain)[1:]}'

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """The reverse of `to_json`; raises `Malformed`, or `NewerSchema`."""
        try:
            plain = json.loads(text)
            schema = plain["schema"]
            if type(schema) is int and schema > SCHEMA:
                raise NewerSchema(schema)
            return _record(plain)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Malformed(f"{type(error).__name__}: {error}") from error
        except (QmpkitError, cattrs.BaseValidationError) as error:
            raise Malformed(str(error)) from error


_OWN_FORM = {"spec", "restart", "facts", "identity", "sites", "end", "history", "health"}
_OWN_FORM |= {"farm", "change", "heir", "plugged", "leaving", "rest"}
_AS_THEY_ARE = tuple(it.name for it in attrs.fields(Record) if it.name not in _OWN_FORM)
_CHANGE_LISTS = ("jobs", "nodes", "files", "leaving", "obsolete", "coming", "going")
_CAUSES: dict[str, Cause] = {cause.value: cause for cause in (*ExitCause, *Mishap)}


_texts: dict[int, tuple[weakref.ref[MachineSpec], str]] = {}


def _text_of(spec: MachineSpec) -> str:
    """The JSON of a spec, which is written several times in its life, and seldom changes."""
    key = id(spec)
    known = _texts.get(key)
    if known is None or known[0]() is not spec:
        gone = weakref.ref(spec, lambda _: _texts.pop(key, None))
        known = _texts[key] = (gone, json.dumps(spec_to_dict(spec)))
    return known[1]


def digest_of(spec: MachineSpec) -> str:
    """A short text that is the same for equal specs."""
    plain = json.dumps(spec_to_dict(spec, defaults=False), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def _record(plain: Mapping[str, Any]) -> Record:
    identity, end = plain["identity"], plain["end"]
    return Record(
        name=_text(plain["name"]),
        declared=_one_of(plain["declared"], Declared),
        spec=spec_from_dict(plain["spec"]),
        asked=_text(plain["asked"]),
        restart=Restart(**plain["restart"]),
        sockets=_text(plain["sockets"]),
        health=None if (health := plain.get("health")) is None else structure_as(health, Health),
        after=tuple(map(_text, plain.get("after", ()))),
        requires=tuple(map(_text, plain.get("requires", ()))),
        farm=None if (farm := plain.get("farm")) is None else machine_from_dict(farm),
        phase=_one_of(plain["phase"], Phase),
        identity=None if identity is None else Identity.from_dict(identity),
        argv=tuple(map(_text, plain["argv"])),
        facts=_facts(plain["facts"]),
        sites=None if (sites := plain.get("sites")) is None else Sites.from_dict(sites),
        end=None if end is None else _end_from_dict(end),
        history=History.from_dict(plain["history"]),
        change=None if (change := plain.get("change")) is None else _change_from_dict(change),
        heir=None if (heir := plain.get("heir")) is None else _heir_from_dict(heir),
        plugged=tuple(map(join_from_dict, plain.get("plugged", ()))),
        leaving=None if (leaving := plain.get("leaving")) is None else Leaving(**leaving),
        arriving=_text(plain.get("arriving", "")),
        arrived=_text(plain.get("arrived", "")),
        rest=None if (rest := plain.get("rest")) is None else Remainder(**rest),
        time=float(plain["time"]),
    )


def _facts(plain: Mapping[str, Any]) -> Facts:
    flash = plain["flash"]
    flags = tuple(plain["cpu_flags"])
    return Facts(**{**plain, "cpu_flags": flags, "flash": Flash(**flash) if flash else None})


def _heir_to_dict(heir: Heir) -> dict[str, Any]:
    plain = attrs.asdict(heir)
    return plain | {"identity": heir.identity.to_dict(), "spec": spec_to_dict(heir.spec)}


def _heir_from_dict(plain: Mapping[str, Any]) -> Heir:
    return Heir(
        identity=Identity.from_dict(plain["identity"]),
        sockets=_text(plain["sockets"]),
        argv=tuple(map(_text, plain["argv"])),
        facts=_facts(plain["facts"]),
        spec=spec_from_dict(plain["spec"]),
    )


def _health_to_dict(health: Health | None) -> dict[str, Any] | None:
    checks = (
        [check for check in health.checks if not isinstance(check, FunctionCheck)] if health else ()
    )
    return unstructure_any(attrs.evolve(health, checks=checks)) if health and checks else None


def _end_to_dict(end: End) -> dict[str, Any]:
    return attrs.asdict(end) | {"cause": end.cause.value}


def _end_from_dict(plain: Mapping[str, Any]) -> End:
    return End(**{**plain, "cause": _CAUSES[plain["cause"]]})


def _change_to_dict(change: Change) -> dict[str, Any]:
    plain = attrs.asdict(change, recurse=False)
    return plain | {"spec": spec_to_dict(change.spec), "begun": spec_to_dict(change.begun)}


def _change_from_dict(plain: Mapping[str, Any]) -> Change:
    specs = {name: spec_from_dict(plain[name]) for name in ("spec", "begun")}
    lists = {name: tuple(map(_text, plain.get(name, ()))) for name in _CHANGE_LISTS}
    inodes = tuple(int(number) for number in plain.get("inodes", ()))
    return Change(**{**plain, **specs, **lists, "inodes": inodes})


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError(f"expected a text, not {value!r}")
    return value


def _one_of(value: object, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{value!r} is none of {get_args(choices)}")
    return value
