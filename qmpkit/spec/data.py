"""`MachineSpec` to and from dicts and TOML: `schema = 1`, all faults at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import cattrs
import tomli_w

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.check import faults_of
from qmpkit.spec.convert import kind_of, structure
from qmpkit.spec.faults import Step, collect, path_text
from qmpkit.spec.firmware import UEFI
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.plain import plain

__all__ = [
    "SCHEMA",
    "parse_toml",
    "schema_fault",
    "spec_from_dict",
    "spec_from_toml",
    "spec_to_dict",
    "spec_to_toml",
]

SCHEMA = 1
"""The format's number. A reader refuses what is newer than itself."""

_DEPTH_LIMIT = 20


def spec_from_dict(data: Mapping[str, object], *, source: str = "") -> MachineSpec:
    """The spec written in `data`. Raises `SpecInvalid` with every fault, each with its path.

    `source` names the origin (a file) in the message.
    """
    if fault := _depth_fault(data) or schema_fault(data):
        raise SpecInvalid([fault], source)
    fields = {key: value for key, value in data.items() if key != "schema"}
    try:
        spec = structure(fields)
    except cattrs.BaseValidationError as error:
        raise SpecInvalid(_all_faults(fields, error), source) from None
    if faults := faults_of(spec):
        raise SpecInvalid(faults, source)
    return spec


def _depth_fault(data: object) -> Fault | None:
    """Nesting that no machine needs and that the recursive readers behind us would die of."""
    layer = [data]
    for _ in range(_DEPTH_LIMIT):
        layer = [inner for outer in layer for inner in _contents(outer)]
        if not layer:
            return None
    return Fault("", f"tables and lists are nested more than {_DEPTH_LIMIT} deep")


def _contents(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def schema_fault(data: Mapping[str, object]) -> Fault | None:
    """What is wrong with the number of the format, if anything."""
    if "schema" not in data:
        return Fault("schema", "is missing", f"schema = {SCHEMA}")
    schema = data["schema"]
    if type(schema) is not int or schema < 1:
        return Fault("schema", f"must be a number from 1, not {kind_of(schema)}")
    if schema > SCHEMA:
        newer = f"{schema} is newer than the {SCHEMA} this qmpkit reads"
        return Fault("schema", newer, "update qmpkit")
    return None


def _all_faults(fields: Mapping[str, object], error: Exception) -> list[Fault]:
    """The faults of structuring, and those of the rest, as if the bad values were not there."""
    findings = list(collect(error))
    rest: Any = deepcopy(dict(fields))
    for finding in findings:
        _mend(rest, finding.steps)
    faults = [finding.fault for finding in findings]
    try:
        spec = structure(rest)
    except cattrs.BaseValidationError:
        return faults  # too little is left to say more
    seen = [fault.path for fault in faults]
    faults += [fault for fault in faults_of(spec) if not _under(fault.path, seen)]
    return faults


_NEEDED: dict[Step, object] = {
    "kind": "user",
    "format": "qcow2",
    "host": 0,
    "guest": 1,
}


def _mend(data: Any, steps: tuple[Step, ...]) -> None:
    """Take the bad value out; where one is needed, put in one that offends nobody."""
    *parents, last = steps
    for step in parents:
        if isinstance(step, int) and not data:
            return  # the list went with another item
        if not isinstance(data[step], dict | list):
            # A short form, such as memory = "1GX" for memory.size: it goes as a whole.
            last = step
            break
        data = data[step]
    if isinstance(data, list):
        # An item cannot go without moving its siblings' paths, so all of them go.
        data.clear()
    elif last == "file":
        data[last] = path_text(steps)
    elif last in _NEEDED:
        data[last] = _NEEDED[last]
    else:
        data.pop(last, None)


def _under(path: str, seen: list[str]) -> bool:
    return any(path == other or path.startswith((f"{other}.", f"{other}[")) for other in seen)


def spec_to_dict(spec: MachineSpec, *, defaults: bool = True) -> dict[str, object]:
    """`spec` as plain data that `spec_from_dict` reads back to an equal spec.

    With `defaults` every field is there but those that are None, so that the text keeps
    its meaning when a default changes; without, only what differs from the defaults.
    """
    data: dict[str, object] = plain(spec, defaults=defaults)
    return {"schema": SCHEMA, **(data if defaults else _short_forms(data))}


def _short_forms(data: dict[str, Any]) -> dict[str, object]:
    """As people write it."""
    for key, only in (("memory", "size"), ("cpu", "cpus")):
        if data.get(key, {}).keys() == {only}:
            data[key] = data[key][only]
    if data.get("firmware") == {}:
        data["firmware"] = UEFI
    for key, prefix in (("disks", "disk"), ("nics", "nic")):
        for number, item in enumerate(data.get(key, ())):
            # The name it would be given anyway.
            if item.get("id") == f"{prefix}{number}":
                del item["id"]
    return data


def parse_toml(text: str, source: str = "") -> dict[str, object]:
    """A TOML text as a dict. Raises `SpecInvalid` that says in which line it is not TOML."""
    try:
        data = tomllib.loads(text)
    # Not only TOMLDecodeError: a number of 5000 digits is a plain ValueError.
    except (ValueError, RecursionError) as error:
        raise SpecInvalid([Fault("", f"this is not TOML: {error}")], source) from None
    if fault := _depth_fault(data):
        raise SpecInvalid([fault], source)
    return data


def spec_from_toml(text: str, *, source: str = "") -> MachineSpec:
    """`spec_from_dict` of a TOML text. `extends` and relative paths need `load_profile`."""
    return spec_from_dict(parse_toml(text, source), source=source)


def spec_to_toml(spec: MachineSpec, *, defaults: bool = True) -> str:
    """`spec_to_dict` as TOML."""
    return tomli_w.dumps(spec_to_dict(spec, defaults=defaults))
