"""cattrs' nested errors as a flat list of faults with paths such as `disks[1].format`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import cattrs

from qmpkit.errors import Fault
from qmpkit.spec.convert import Wrong
from qmpkit.spec.health import CHECK_KINDS
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import NIC_KINDS
from qmpkit.spec.peripherals import DEVICE_KINDS
from qmpkit.spec.suggest import unknown_key

__all__ = ["Finding", "Step", "collect", "path_text"]

Step = str | int


@attrs.frozen
class Finding:
    """A fault that still knows its path as steps, and whether a needed key is absent there."""

    steps: tuple[Step, ...]
    message: str
    hint: str = ""

    @property
    def fault(self) -> Fault:
        """The fault as the user reads it."""
        return Fault(path_text(self.steps), self.message, self.hint)


def path_text(steps: tuple[Step, ...]) -> str:
    """`disks[1].format`."""
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def collect(error: BaseException, steps: tuple[Step, ...] = ()) -> Iterator[Finding]:
    """Every leaf of what structuring raised."""
    if isinstance(error, cattrs.BaseValidationError):
        for inner in error.exceptions:
            yield from collect(inner, (*steps, *_step(inner)))
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = _keys_of(error.cl)
        for key in sorted(error.extra_fields):
            fault = unknown_key("", key, known)
            yield Finding((*steps, key), fault.message, fault.hint)
    elif isinstance(error, Wrong):
        yield Finding(steps, error.message, error.hint)
    elif isinstance(error, KeyError):
        yield Finding(steps, "is missing")
    else:
        raise error


def _step(error: BaseException) -> tuple[Step, ...]:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, cattrs.AttributeValidationNote):
            return (note.name,)
        if isinstance(note, cattrs.IterableValidationNote):
            return (note.index,)
    return ()


def _keys_of(cls: Any) -> list[str]:
    names = [field.name for field in attrs.fields(cls)]
    if cls is MachineSpec:
        return [*names, "schema", "extends"]  # a file's, which are read before the rest
    tagged = (*NIC_KINDS.values(), *DEVICE_KINDS.values(), *CHECK_KINDS.values())
    return [*names, "kind"] if cls in tagged else names
