"""Whether every value of a spec is of its field's type: quick, and silent about which is not.

cattrs, which can tell, compiles code for each class that it meets: 15 ms of the first start of
a program, for specs that are right as a rule.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import cache, partial
from types import UnionType
from typing import Any, Literal, NewType, TypeAlias, get_args, get_origin

import attrs

from qmpkit.spec.fields import hints_of

__all__ = ["is_well_typed"]

_Test: TypeAlias = Callable[[Any], bool]


def is_well_typed(value: object) -> bool:
    """Whether *value*, of one of our classes, and all in it is as its fields say.

    False as well where this does not know: whoever is to tell what is wrong looks again.
    """
    kind: Any = type(value)
    return attrs.has(kind) and _test_of(kind)(value)


@cache
def _test_of(kind: Any) -> _Test:
    if isinstance(kind, NewType):
        return lambda value: type(value) is int and value >= 0  # a size
    if attrs.has(kind):
        return _class_test(kind)
    origin, of = get_origin(kind), get_args(kind)
    if origin is Literal:
        return lambda value: type(value) is str and value in of
    if origin in (typing.Union, UnionType):
        tests = [_test_of(one) for one in of]
        return lambda value: any(test(value) for test in tests)
    if origin is tuple and of[1:] == (...,):
        return _items_test(_test_of(of[0]))
    if origin is dict:
        return _table_test(_test_of(of[0]), _test_of(of[1]))
    if kind is float:
        return lambda value: type(value) in (int, float)
    if kind in (str, int, bool, type(None)):
        return lambda value: type(value) is kind
    return lambda value: False


def _class_test(kind: Any) -> _Test:
    # Its fields only once there is one: most programs have few of the classes that there are.
    tests = partial(_tests_of, kind)
    return lambda value: (
        type(value) is kind and all(fits(getattr(value, name)) for name, fits in tests())
    )


@cache
def _tests_of(kind: Any) -> tuple[tuple[str, _Test], ...]:
    hints = hints_of(kind)
    return tuple((it.name, _test_of(hints[it.name])) for it in attrs.fields(kind))


def _items_test(fits: _Test) -> _Test:
    return lambda value: type(value) is tuple and all(map(fits, value))


def _table_test(key: _Test, fits: _Test) -> _Test:
    return lambda value: type(value) is dict and all(key(k) and fits(v) for k, v in value.items())
