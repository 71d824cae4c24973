"""What one supervisor tells another of a machine that is to move to it, and what is wrong with it.

What comes from a peer is read by the parsers that read files of users, as strictly, and means
nothing until `offer_from_dict` has made an `Offer` of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import attrs
import cattrs

from qmpkit.errors import Fault, QmpkitError, SpecInvalid
from qmpkit.operations.migration.options import MigrationOptions
from qmpkit.operations.migration.storage import DiskMove, with_moves
from qmpkit.spec.convert import structure_as, unstructure_any
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.health import FunctionCheck, Health, health_faults
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import machine_name_problem
from qmpkit.spec.network import Forward, UserNic
from qmpkit.spec.paths import PATHS, texts_of
from qmpkit.spec.restart import Restart, restart_faults
from qmpkit.spec.suggest import unknown_key
from qmpkit.supervisor.moves.cables import faults_away
from qmpkit.supervisor.moves.offer_disks import disks_from, disks_to
from qmpkit.supervisor.moves.terms import ReceiveTerms
from qmpkit.supervisor.record import Declared, Record

__all__ = [
    "Offer",
    "file_faults",
    "offer_from_dict",
    "offer_to_dict",
    "options_from",
]
__all__ += ["offer_faults", "ports_from", "setting_from"]

_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_MANY = 256
_LONGEST_CUT = 86400.0  # seconds that a QEMU of nobody's waits here at most
_KEYS = {"id", "spec", "asked", "declared", "restart", "health", "after", "requires"}
_KEYS |= {"generation", "disks"}


@attrs.frozen(kw_only=True)
class Offer:
    """A machine that wants to come: `id` is its move's, the rest is as in `Record`.

    `generation`: what its guest knows itself by, if it does (`vmgenid`).  `moves`: the disks
    that go along, whose images are to be made where `spec` has them.
    """

    id: str
    spec: MachineSpec
    asked: str
    declared: Declared
    restart: Restart
    health: Health | None = None
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    generation: str | None = None
    moves: tuple[DiskMove, ...] = ()


def offer_faults(record: Record) -> Iterator[Fault]:
    """What of a kept machine cannot travel."""
    yield from faults_away(record)
    if record.health is not None and any(isinstance(it, FunctionCheck) for it in _checks(record)):
        yield Fault("health", "a check that is a function of this program cannot follow")
    if record.change is not None:
        yield Fault("", "a change of its disks or devices is under way", "wait for its end")


def _checks(record: Record) -> Iterable[object]:
    return () if record.health is None else record.health.checks


def offer_to_dict(
    record: Record, ident: str, generation: str | None, moves: Sequence[DiskMove] = ()
) -> dict[str, Any]:
    """The words that a machine is offered by.

    `disks` says how the other side is to have them: it makes images for those that go along,
    and finds the others where they are here.
    """
    return {
        "id": ident,
        "spec": spec_to_dict(with_moves(record.spec, moves)),
        "asked": record.asked,
        "declared": record.declared,
        "restart": attrs.asdict(record.restart),
        "health": None if record.health is None else unstructure_any(record.health),
        "after": list(record.after),
        "requires": list(record.requires),
        "generation": generation,
        "disks": disks_to(moves),
    }


def offer_from_dict(plain: object) -> Offer:
    """The reverse; raises SpecInvalid with what is wrong."""
    if not isinstance(plain, dict):
        raise SpecInvalid([Fault("offer", "is no object")], "the offer")
    faults = [
        Fault(key, "is missing") if key in _KEYS else unknown_key(key, key, _KEYS)
        for key in sorted(plain.keys() ^ _KEYS)
    ]
    if faults:
        raise SpecInvalid(faults, "the offer")
    spec = spec_from_dict(_table(plain["spec"]), source="the offer")
    try:
        offer = Offer(
            id=plain["id"],
            spec=spec,
            asked=_text(plain["asked"]),
            declared=plain["declared"],
            restart=structure_as(_table(plain["restart"]), Restart),
            health=None if (health := plain["health"]) is None else structure_as(health, Health),
            after=_names(plain["after"]),
            requires=_names(plain["requires"]),
            generation=plain["generation"],
            moves=disks_from(plain["disks"], spec),
        )
    except SpecInvalid:
        raise
    except (cattrs.BaseValidationError, ValueError, TypeError, QmpkitError) as error:
        raise SpecInvalid([Fault("", f"makes no sense: {error}")], "the offer") from error
    if faults := [*_senseless(offer)]:
        raise SpecInvalid(faults, "the offer")
    return offer


def _senseless(offer: Offer) -> Iterator[Fault]:
    if not isinstance(offer.id, str) or not _ID.fullmatch(offer.id):
        yield Fault("id", "is no number of a move")
    if problem := machine_name_problem(offer.spec.name):
        yield Fault("spec.name", problem)
    if offer.spec.uuid is None:
        yield Fault("spec.uuid", "is missing")
    if offer.declared not in get_args(Declared) or offer.declared == "stopped":
        yield Fault("declared", f"cannot be {offer.declared!r}")
    generation = offer.generation
    if generation is not None and not (isinstance(generation, str) and _UUID.fullmatch(generation)):
        yield Fault("generation", "is no UUID")
    yield from restart_faults(offer.restart)
    yield from () if offer.health is None else health_faults(offer.health)


def file_faults(spec: MachineSpec) -> Iterator[Fault]:
    """Which of a machine's files are not there; its disks are told of elsewhere.  Blocking."""
    patterns = tuple(it for it in PATHS if it[0] != "disks" and it[0] not in _UNNEEDED)
    for path in dict.fromkeys(texts_of(spec, patterns)):
        if path.startswith("/") and not Path(path).exists():
            yield Fault("", f"{path!r} does not exist", "both sides need it at the same place")


_UNNEEDED = ("memory", "resume_from")


def options_from(plain: object, terms: ReceiveTerms | None) -> MigrationOptions:
    """How a peer wants the memory to come; SpecInvalid."""
    table = _table(plain)
    channels, compression = table.get("channels", 0), table.get("compression", "none")
    if type(channels) is not int:
        raise SpecInvalid([Fault("channels", "is no whole number")])
    within = table.get("recover_within", 0.0)
    if type(within) not in (int, float) or within > _LONGEST_CUT:
        raise SpecInvalid([Fault("recover_within", "is no number of seconds, or too many")])
    if terms is None:
        way: dict[str, Any] = {"way": "unix"}
    else:
        way = {"way": "tcp", "address": terms.address, "tls": terms.tls}
    return MigrationOptions(
        **way, channels=channels, compression=compression, recover_within=within
    )


def setting_from(plain: object) -> list[dict[str, object]]:
    """Which capabilities a peer wants; SpecInvalid."""
    if isinstance(plain, list) and len(plain) <= _MANY and all(map(_is_capability, plain)):
        return [{"capability": it["capability"], "state": it["state"]} for it in plain]
    raise SpecInvalid([Fault("capabilities", "makes no sense")])


def _is_capability(it: object) -> bool:
    if not isinstance(it, dict):
        return False
    return isinstance(it.get("capability"), str) and isinstance(it.get("state"), bool)


def ports_from(plain: object, spec: MachineSpec) -> dict[str, list[Forward]]:
    """Which ports a peer's machine had, by NIC; SpecInvalid."""
    known = {nic.id for nic in spec.nics}
    ports: dict[str, list[Forward]] = {}
    try:
        for nic, forwards in _table(plain).items():
            if nic not in known or not isinstance(forwards, list) or len(forwards) > _MANY:
                raise SpecInvalid([Fault("ports", f"{nic!r} makes no sense")])
            ports[nic] = [structure_as(it, Forward) for it in forwards]
    except cattrs.BaseValidationError as error:
        raise SpecInvalid([Fault("ports", f"makes no sense: {error}")]) from error
    nics = [
        attrs.evolve(nic, forwards=ports[nic.id])
        if isinstance(nic, UserNic) and nic.id in ports
        else nic
        for nic in spec.nics
    ]
    spec_from_dict(spec_to_dict(attrs.evolve(spec, nics=nics)), source="the ports")
    return ports


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecInvalid([Fault("", "what should be an object is none")], "the offer")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MANY:
        raise TypeError(f"expected a short text, not {value!r:.50}")
    return value


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MANY:
        raise TypeError("expected a list of names")
    return tuple(map(_text, value))
