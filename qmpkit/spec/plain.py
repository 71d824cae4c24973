"""A spec as plain data for its text: quick, also the first time.

cattrs, which reads such data and finds what is wrong with it, compiles code for each class that
it is to write: 11 ms of the first start of a supervisor.  Nothing can be wrong on the way out.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import attrs

from qmpkit.spec.fields import hints_of
from qmpkit.spec.network import NIC_KINDS
from qmpkit.spec.peripherals import DEVICE_KINDS
from qmpkit.spec.sizes import Size, format_size

__all__ = ["plain"]

_KINDS: dict[type, str] = {
    cls: name for kinds in (NIC_KINDS, DEVICE_KINDS) for name, cls in kinds.items()
}
_SCALARS = frozenset((str, int, bool, float))


def plain(value: Any, *, defaults: bool) -> Any:
    """*value*, a spec or a part of one, without what is None.

    Without *defaults* also without the fields that have theirs.
    """
    kind = type(value)
    if attrs.has(kind):
        return _table(value, kind, defaults)
    if kind is tuple:
        return [plain(item, defaults=defaults) for item in value]
    if kind is dict:
        return {key: plain(item, defaults=defaults) for key, item in value.items()}
    return value


def _table(value: Any, kind: Any, defaults: bool) -> dict[str, Any]:
    table: dict[str, Any] = {"kind": _KINDS[kind]} if kind in _KINDS else {}
    for name, default, sized in _fields_of(kind):
        item = getattr(value, name)
        if item is None or not (defaults or item != default):
            continue
        if type(item) not in _SCALARS:
            item = plain(item, defaults=defaults)
        elif sized and type(item) is int:
            item = format_size(item)
        table[name] = item
    return table


@cache
def _fields_of(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Of each field its name, its default, and whether a number in it is a size."""
    hints = hints_of(kind)
    return tuple(
        (it.name, _default_of(it), Size in (hints[it.name], *get_args(hints[it.name])))
        for it in attrs.fields(kind)
    )


def _default_of(field: Any) -> Any:
    default = field.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]
