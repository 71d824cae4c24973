"""The quick look at a spec's types: it agrees with cattrs wherever it says that all is well."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import cattrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit import Cpu, MachineSpec, Memory, UserNic, load_profile
from qmpkit.spec.check import type_faults
from qmpkit.spec.convert import structure, unstructure
from qmpkit.spec.well_typed import is_well_typed
from tests.unit.spec.strategies import machines

PROFILES = sorted(
    path.stem
    for path in (Path(__file__).parents[3] / "profiles").glob("*.toml")
    if path.stem != "images"
)

ODD: list[Any] = [None, True, False, 0, 1, -1, 1.5, math.nan, "", "x", "1GiB", "tcg", b"x"]
ODD += [[], ["a"], (), ("a",), (1,), ("a", 1), (None,), {}, {"a": "b"}, {"a": 1}, {"a": 1.5}]
ODD += [{1: "a"}, {"a": None}, Cpu(), Memory("1GiB"), UserNic(), (UserNic(),), Path("x")]


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_are_well_typed(name: str) -> None:
    assert is_well_typed(load_profile(name))


@given(machines())
def test_so_is_every_sound_machine(spec: MachineSpec) -> None:
    assert is_well_typed(spec)


def places(value: object) -> Iterator[tuple[object, str]]:
    """Every field in it, with its owner."""
    kind: Any = type(value)
    if attrs.has(kind):
        for field in attrs.fields(kind):
            yield value, field.name
            yield from places(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from places(item)


def cattrs_is_content(spec: MachineSpec) -> bool:
    try:
        structure(unstructure(spec))
    except (cattrs.BaseValidationError, AttributeError, TypeError, ValueError):
        return False
    return True


@given(machines(), st.data())
def test_where_it_is_content_so_is_cattrs(spec: MachineSpec, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(list(places(spec))) - 1))
    for value in ODD:
        changed = copy.deepcopy(spec)
        owner, name = list(places(changed))[place]
        object.__setattr__(owner, name, value)
        assert not is_well_typed(changed) or cattrs_is_content(changed), (name, value)


@pytest.mark.parametrize("value", [None, 1, b"x", ["a"], Path("x")], ids=repr)
def test_what_is_wrong_is_told_all_the_same(value: object) -> None:
    spec = MachineSpec(name="a")
    object.__setattr__(spec, "name", value)
    assert not is_well_typed(spec)
    assert [fault.path for fault in type_faults(spec)] == ["name"]


def test_it_does_not_know_what_is_none_of_ours() -> None:
    assert not is_well_typed("a")
