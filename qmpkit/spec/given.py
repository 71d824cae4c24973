"""What Python code hands to the constructors of a spec, refused where it would turn into nonsense.

A text is a list of letters to Python: `launcher="nice -n 5"` would otherwise be
nine words, and a number or a dict in a list fails far from whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from qmpkit.errors import Fault, SpecInvalid

__all__ = ["items_of", "table_of"]

_Item = TypeVar("_Item")


def items_of(
    value: Iterable[_Item], where: str, hint: str, kinds: tuple[type, ...] = (object,)
) -> tuple[_Item, ...]:
    """*value* as a tuple; `SpecInvalid` when it is no list, or an item is of none of *kinds*."""
    if type(value) is tuple:  # as in each copy of a spec: the questions below are dear
        items = value
    elif isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise SpecInvalid([Fault(where, f"must be a list, not {value!r}", hint)])
    else:
        items = tuple(value)
    faults = [
        Fault(f"{where}[{number}]", f"cannot be {item!r}", hint)
        for number, item in enumerate(items)
        if not isinstance(item, kinds)
    ]
    if faults:
        raise SpecInvalid(faults)
    return items


def table_of(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """*value* as a dict of our own; `SpecInvalid` when it is no mapping."""
    if not isinstance(value, Mapping):
        raise SpecInvalid([Fault(where, f"must be a dict, not {value!r}")])
    return dict(value)
