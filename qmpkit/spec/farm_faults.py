"""Faults of a farm: in which file and table each one stands, through includes and defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import cattrs

from qmpkit.errors import Fault
from qmpkit.spec.convert import kind_of, structure_as
from qmpkit.spec.faults import Step, collect, path_text
from qmpkit.spec.suggest import unknown_key

__all__ = ["Faults", "Layer", "Where", "origin", "steps_of", "structured", "table_at"]

Steps = tuple[Step, ...]
Where = Callable[[Steps], str]
"""Gives the text of a path, which begins with the file when it is not the farm's own."""

_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_T = TypeVar("_T")


class Faults:
    """Faults as they are found; the same words about the same place are kept once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Fault] = {}

    def add(self, path: str, message: str, hint: str = "") -> None:
        """One more fault."""
        self._found.setdefault((path, message), Fault(path, message, hint))

    def add_unknown(self, path: str, key: str, known: Iterable[str]) -> None:
        """That nothing there is called *key*, and what is."""
        fault = unknown_key(path, key, known)
        self.add(fault.path, fault.message, fault.hint)

    def add_all(self, faults: Iterable[Fault], where: Where) -> None:
        """Faults whose paths count from a table that *where* knows the place of."""
        for fault in faults:
            self.add(where(steps_of(fault.path)), fault.message, fault.hint)

    @property
    def found(self) -> tuple[Fault, ...]:
        """All so far, in order."""
        return tuple(self._found.values())


def steps_of(path: str) -> Steps:
    """`disks[1].format` as steps; the other way round it is `path_text`."""
    return tuple(int(number) if number else name for number, name in _STEP.findall(path))


@attrs.frozen
class Layer:
    """A table and where it stands; `label` is the file's name, "" for the farm's own."""

    label: str
    prefix: Steps
    table: Mapping[str, Any]

    def where(self, steps: Steps) -> str:
        """The path of *steps* below this table."""
        path = path_text((*self.prefix, *steps))
        return ": ".join(filter(None, (self.label, path)))

    def holds(self, steps: Steps) -> bool:
        """Whether there is something at *steps*."""
        value: Any = self.table
        for step in steps:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return False
        return True


def origin(layers: Sequence[Layer], steps: Steps) -> str:
    """The path in the layer that gave the value; the first layer wins, as it did in merging.

    What is missing is missing in the innermost table that is there.
    """
    for length in range(len(steps), 0, -1):
        for layer in layers:
            if layer.holds(steps[:length]):
                return layer.where(steps)
    return layers[0].where(steps)


def table_at(value: object, path: str, faults: Faults) -> dict[str, Any]:
    """*value* when it is a table; else a fault, and an empty one to go on with."""
    if isinstance(value, dict):
        return value
    faults.add(path, f"must be a table, not {kind_of(value)}")
    return {}


def structured(
    data: dict[str, Any], kind: type[_T], where: Where, faults: Faults
) -> tuple[_T | None, set[str]]:
    """*data* as a *kind*, and the keys whose faults were told and which were left out.

    None when it cannot be made without them.
    """
    bad: set[str] = set()
    try:
        return structure_as(data, kind), bad
    except cattrs.BaseValidationError as error:
        for finding in collect(error):
            faults.add(where(finding.steps), finding.message, finding.hint)
            bad.add(str(finding.steps[0]))
    try:
        return structure_as({key: data[key] for key in data if key not in bad}, kind), bad
    except cattrs.BaseValidationError:
        return None, bad
