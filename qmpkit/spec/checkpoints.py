"""Checkpoints of a lab as they are written down.  Pure data."""

from __future__ import annotations

import json

import attrs
import cattrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.convert import kind_of, structure_as, unstructure_any
from qmpkit.spec.faults import collect

__all__ = ["CHECKPOINT_SCHEMA", "Checkpoint", "checkpoint_from_json", "checkpoint_to_json"]

CHECKPOINT_SCHEMA = 1
"""The format's number.  A reader refuses what is newer than itself."""


@attrs.frozen(kw_only=True)
class Checkpoint:
    """One moment of several machines: a snapshot of its name, with the RAM, in each of them.

    `time`: seconds since the epoch.  `pause`: for how many seconds they stood still.
    `whole`: false while it is taken or deleted, and when that was interrupted: it is to be
    deleted.  `rewinding`: its machines were on the way back to it when that was interrupted:
    to be done once more.
    """

    name: str
    machines: tuple[str, ...]
    time: float = 0.0
    pause: float = 0.0
    description: str = ""
    whole: bool = True
    rewinding: bool = False


def checkpoint_to_json(point: Checkpoint) -> str:
    """The text that is written."""
    return json.dumps({"schema": CHECKPOINT_SCHEMA, **unstructure_any(point)}) + "\n"


def checkpoint_from_json(text: bytes, source: str) -> Checkpoint:
    """The reverse; SpecInvalid with what is wrong with it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecInvalid([Fault("", f"this is not JSON: {error}")], source) from None
    schema = data.pop("schema", None) if isinstance(data, dict) else None
    if type(schema) is not int:
        raise SpecInvalid([Fault("", f"this is no checkpoint but {kind_of(data)}")], source)
    if schema > CHECKPOINT_SCHEMA:
        newer = f"{schema} is newer than the {CHECKPOINT_SCHEMA} this qmpkit reads"
        raise SpecInvalid([Fault("schema", newer, "update qmpkit")], source)
    try:
        return structure_as(data, Checkpoint)
    except cattrs.BaseValidationError as error:
        raise SpecInvalid([found.fault for found in collect(error)], source) from None
